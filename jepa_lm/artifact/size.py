"""The size account of the challenge: compressed model plus code against 16,000,000 bytes."""

from __future__ import annotations

from pathlib import Path

import jepa_lm


def code_bytes() -> int:
    """Bytes of the package's own Python source, as it stands on disk."""
    package = Path(jepa_lm.__file__).parent
    return sum(path.stat().st_size for path in package.rglob("*.py"))
