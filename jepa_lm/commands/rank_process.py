"""Entry point of a rank started by the first: `python -m jepa_lm.commands.rank_process CONFIG.json`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from jepa_lm.utils import process

PATIENCE = 5.0
"""Seconds to wait, after a collective failed, for this process to be ended."""


def main(path: Path) -> int:
    """Train this rank's share; return the exit code. Rank 0 reports errors that every rank has."""
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
            # A collective raises it when a peer is gone. Then this process is killed while it waits: rank 0
            # is gone too, or ends all ranks because one is lost. Otherwise it is a bug.
            time.sleep(PATIENCE)
            raise
        return 0

    return command(share, path.parent, name=f"rank {os.environ['LOCAL_RANK']}: ")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
