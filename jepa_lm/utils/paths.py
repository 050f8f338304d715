"""The config folder, and the objectives in it."""

from __future__ import annotations

from pathlib import Path

CONF = Path(__file__).resolve().parent.parent.parent / "conf"


def objectives(folder: Path = CONF / "objective") -> list[str]:
    """Return the objectives without `none`, recipes and variants (`lewm_byte` is a variant of `lewm`)."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    known = [name for name in names if name not in ("base", "none")]
    return [n for n in known if not any(n.startswith(f"{other}_") for other in known)]
