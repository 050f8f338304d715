"""`python eval.py`; see README.md."""

import sys

from jepa_lm.cli import launch

if __name__ == "__main__":
    sys.exit(launch("eval"))
