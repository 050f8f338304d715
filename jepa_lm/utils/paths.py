"""Where the configs lie."""

from __future__ import annotations

from pathlib import Path

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
