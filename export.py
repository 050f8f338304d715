"""`python export.py`; see README.md."""

import sys

from jepa_lm.cli import export

if __name__ == "__main__":
    sys.exit(export())
