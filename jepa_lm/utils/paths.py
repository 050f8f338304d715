"""Path of the config folder."""

from __future__ import annotations

from pathlib import Path

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
