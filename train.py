"""`python train.py`; see README.md."""

import sys

from jepa_lm.cli import train

if __name__ == "__main__":
    sys.exit(train())
