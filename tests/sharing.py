"""What tests only read is made once, by the first worker of pytest-xdist that needs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock


def once(place: Path, make: Callable[[Path], Any]) -> Any:
    """Return what `make(place)` returned, as JSON holds it, in the worker that called it; others wait."""
    returned = Path(f"{place}.json")
    with FileLock(f"{place}.lock"):
        if not returned.exists():
            shutil.rmtree(place, ignore_errors=True)  # of a worker that failed
            text = json.dumps(make(place))
            returned.write_text(text)
    return json.loads(returned.read_text())
