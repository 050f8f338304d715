"""One rank of a run that another process started: `python -m jepa_lm.commands.rank_process CONFIG.json`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from jepa_lm.utils import process

PATIENCE = 5.0
"""Seconds."""


def main(path: Path) -> int:
    """Train this rank's share; returns the exit code. Errors that every rank has are told by rank 0."""
    process.stop_with_parent()  # before slow imports
    process.tune()
    from jepa_lm.commands.train import train_resolved
    from jepa_lm.utils.crash import command
    from jepa_lm.utils.errors import EveryRankError
    from jepa_lm.utils.files import read_json
    from jepa_lm.utils.signals import Stopped

    def share() -> int:
        try:
            train_resolved(read_json(path))
        except EveryRankError as error:
            return error.exit_code
        except Stopped as stopped:
            return stopped.exit_code
        except RuntimeError:
            # A collective raises it whose other end is gone: then this process is ended meanwhile, as rank 0
            # is gone as well, or ends the others because of the lost one. Else it is our own bug.
            time.sleep(PATIENCE)
            raise
        return 0

    return command(share, path.parent, name=f"rank {os.environ['LOCAL_RANK']}: ")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
