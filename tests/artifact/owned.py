"""A module that shows that it was imported: no file may cause that."""

from __future__ import annotations

import os
from pathlib import Path

if "OWNED" in os.environ:
    Path(os.environ["OWNED"]).touch()


class Owned:
    """An empty class."""
