"""Several processes: how they are started, what they agree on, and what happens when one is lost.

On one machine the first process starts the others, each as `python -m jepa_lm.commands.rank_process` with
this run's own resolved config. (Lightning would repeat the command line, which under a sweep starts the
sweep again.) Under torchrun or SLURM the processes are there already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from jepa_lm.training.run_folder import Record
from jepa_lm.utils.errors import RankError
from jepa_lm.utils.files import write_text
from jepa_lm.utils.output import tell
from jepa_lm.utils.process import PARENT, fresh_python

POLL_SECONDS = 1.0
GRACE_SECONDS = 20.0
"""How long the first process may take to notice by itself that another one is gone."""
VARIABLES = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "OMP_NUM_THREADS",
)
"""What a launch leaves in the environment; the next job of a sweep would take it for a rank's."""


class Launcher(_SubprocessScriptLauncher):
    """Starts the other ranks of this machine and ends the run when one of them is lost."""

    config_path: Path | None = None
    """The resolved config that every rank trains."""
    record: Record | None = None
    """Of the run."""
    lost: str | None = None
    """Which rank is gone, and how it went."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._done = threading.Event()

    def launch(
        self, function: Any, *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any
    ) -> Any:
        """Start the others, once, then call the function in this process."""
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.cluster_environment.creates_processes_externally:
            self._start_others()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _start_others(self) -> None:
        assert self.config_path is not None
        environment = self.cluster_environment
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        os.environ["NODE_RANK"] = str(environment.node_rank())
        os.environ["LOCAL_RANK"] = str(environment.local_rank())
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        for rank in range(1, self.num_processes):
            command = ("-m", "jepa_lm.commands.rank_process", str(self.config_path))
            variables = {"LOCAL_RANK": str(rank), PARENT: str(os.getpid())}
            self.procs.append(fresh_python(*command, variables=variables))
        threading.Thread(target=self._observe, daemon=True).start()

    def finished(self) -> None:
        """All ranks are through: one that ends now is no loss."""
        self._done.set()

    def _observe(self) -> None:
        """Wait for a rank that fails; end a first process that hangs in a collective with it."""
        while not self._done.wait(POLL_SECONDS):
            failed = [(i, p.returncode) for i, p in enumerate(self.procs, 1) if p.poll()]
            if not failed:
                continue
            rank, code = failed[0]
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self.lost = f"rank {rank} {how}"
            self.kill_others()
            if not self._done.wait(GRACE_SECONDS):
                assert self.record is not None
                self.record.fail(self.lost)
                tell(f"error: {self.lost}; the others cannot go on")
                os._exit(RankError.exit_code)
            return

    def wait_for_others(self) -> None:
        """Let them end; a rank that does not is ended."""
        for process in self.procs:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def kill_others(self) -> None:
        """End what this process has started."""
        for process in self.procs:
            process.kill()


class DDP(DDPStrategy):
    """Lightning's DDP with our launcher."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


@contextmanager
def ranks_of(trainer: pl.Trainer, config: dict[str, Any], record: Record) -> Iterator[None]:
    """A run over several processes: inside, they work together; afterwards no trace of them is left.

    Raises:
        RankError: the run failed because a rank was lost.
    """
    launcher = getattr(trainer.strategy, "launcher", None)
    if not isinstance(launcher, Launcher):
        yield
        return
    before = {name: os.environ.get(name) for name in VARIABLES}
    launcher.config_path, launcher.record = record.folder / "ranks.json", record
    if not launcher.cluster_environment.creates_processes_externally:
        write_text(launcher.config_path, json.dumps(config))  # with infinities, which JSON lacks
    try:
        yield
    except RuntimeError as error:  # what a collective raises whose other end is gone
        lost = _waits_for_loss(launcher)
        if lost is None:
            raise
        raise RankError(
            f"{lost}, so training stopped; go on from the last checkpoint with ckpt_path={record.folder}"
        ) from error
    finally:
        launcher.finished()
        if launcher.procs:  # for the next job of a sweep, which starts processes of its own
            if sys.exc_info()[0] is not None:
                launcher.kill_others()
            with suppress(RuntimeError):
                dist.destroy_process_group()
            launcher.wait_for_others()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _waits_for_loss(launcher: Launcher) -> str | None:
    """Which rank is gone, once the observer has seen it; None when all of them are there."""
    deadline = time.monotonic() + 3 * POLL_SECONDS
    while launcher.procs and launcher.lost is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return launcher.lost
