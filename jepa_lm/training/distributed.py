"""Multi-process runs: starting the ranks, and ending the run when one is lost.

On one machine the first process starts the others, each as `python -m jepa_lm.commands.rank_process` with
this run's resolved config. (Lightning would repeat the command line, which in a sweep would start the
sweep again.) Under torchrun or SLURM the processes already exist.
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
from jepa_lm.utils.errors import MACHINE, RankError
from jepa_lm.utils.files import write_text
from jepa_lm.utils.output import tell
from jepa_lm.utils.process import PARENT, fresh_python

POLL_SECONDS = 1.0
GRACE_SECONDS = 20.0
"""Time the first process has to notice by itself that another one is lost."""
VARIABLES = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "OMP_NUM_THREADS",
)
"""Environment variables that a launch sets; with them the next job of a sweep would act as a rank."""


class Launcher(_SubprocessScriptLauncher):
    """Starts the other ranks on this machine, and ends the run when one of them is lost."""

    config_path: Path | None = None
    """File with the resolved config for all ranks."""
    record: Record | None = None
    """Record of the run."""
    lost: str | None = None
    """Name of the lost rank, and how it ended."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._done = threading.Event()

    def launch(
        self, function: Any, *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any
    ) -> Any:
        """Start the other ranks, once, then call the function in this process."""
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
        """Mark all ranks as finished: a rank that ends from now on is not lost."""
        self._done.set()

    def _observe(self) -> None:
        """Wait for a rank to fail; end this process if it then hangs in a collective."""
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
                self.record.fail(self.lost, MACHINE)
                tell(f"error: {self.lost}; the other ranks cannot continue")
                os._exit(RankError.exit_code)
            return

    def wait_for_others(self) -> None:
        """Wait for the other ranks to end; kill those that do not."""
        for process in self.procs:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def kill_others(self) -> None:
        """Kill the ranks that this process started."""
        for process in self.procs:
            process.kill()


class DDP(DDPStrategy):
    """Lightning's DDP with our launcher."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


@contextmanager
def ranks_of(trainer: pl.Trainer, config: dict[str, Any], record: Record) -> Iterator[None]:
    """Run the body with all ranks; afterwards end them and restore the environment.

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
        # `json` writes infinities, which strict JSON lacks.
        write_text(launcher.config_path, json.dumps(config))
    try:
        yield
    except RuntimeError as error:  # a collective raises it when its peer is gone
        lost = _waits_for_loss(launcher)
        if lost is None:
            raise
        raise RankError(
            f"{lost}, so training stopped; resume from the last checkpoint with ckpt_path={record.folder}"
        ) from error
    finally:
        launcher.finished()
        if launcher.procs:  # the next job of a sweep starts its own processes
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
    """Wait for the observer to notice a lost rank; return its description, or None if all are alive."""
    deadline = time.monotonic() + 3 * POLL_SECONDS
    while launcher.procs and launcher.lost is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return launcher.lost
