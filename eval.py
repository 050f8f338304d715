"""`python eval.py`; see README.md."""

import sys

from jepa_lm.cli import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
