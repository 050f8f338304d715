"""60 SIGKILLs over ten kinds of work: `make kills`, or `python -m tests.kills [NAME...]`.

Each kind of work is done once undisturbed, and once in a folder where it is killed again and again and
resumed by the same command. The results must be equal: every tensor and number of the last checkpoint, every
row of metrics.csv, the score; every byte of an export and of a cache.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console
from rich.table import Table

from jepa_lm.artifact.loading import load_artifact
from jepa_lm.cli import launch
from jepa_lm.commands import train as training
from jepa_lm.data.corpora import Austen
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils import schema
from jepa_lm.utils.errors import RankError
from jepa_lm.utils.paths import CONF
from tests.comparing import compare_files, compare_runs
from tests.conftest import SMALL, SMALL_MAMBA2
from tests.kill_worker import KILLED, LOST_RANK, Plan, until_done

MOMENTS = ("start", "step", "half", "validation", "kept", "rows", "complete", "linked", "named")
SOME_STEPS = 5
"""A child that is to die at a step dies within this many steps of its own."""
COMMON = (
    *("trainer.log_every_n_steps=1", "trainer.val_check_interval=3", "checkpoint.every_n_steps=3"),
    *("trainer.limit_val_batches=2", "trainer.max_steps=28", "ckpt_path=auto", "sample=false"),
)
SECONDS_A_STEP = 0.25


class Result(NamedTuple):
    """The outcome of one kind of work."""

    kills: Counter[str]
    compared: dict[str, int]
    seconds: float


class Work:
    """A kind of work: how it is done in a folder, when it is killed, what is compared."""

    def __init__(self, *words: str, sizes: tuple[str, ...] = SMALL, timed: bool = False) -> None:
        self.words, self.sizes, self.timed = (*COMMON, *words), sizes, timed

    def prepare(self, place: Path) -> None:
        """Prepare the place once, before any work is done in it."""

    def do(self, folder: Path, place: Path) -> object:
        """Do the work in a child process."""
        GlobalHydra.instance().clear()
        words = [*self.sizes, *self.words, f"data.path={place.parent}/text.txt"]
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("train", [*words, f"paths.run_dir={folder}"])
        try:
            training.train(cfg)
        except RankError as error:
            return error.exit_code
        return 0

    def plans(self, moments: list[str], draw: random.Random) -> list[Plan]:
        return [Plan(kind, _number(kind, draw), draw.random()) for kind in moments]

    def compare(self, whole: Path, killed: Path) -> dict[str, int]:
        return compare_runs(whole, killed, timed=self.timed)


def _number(kind: str, draw: random.Random) -> int:
    return draw.randint(1, SOME_STEPS) if kind in ("step", "rows", "other") else draw.randint(1, 2)


class Simulated(Work):
    """A wall-clock budget on a clock that advances with each step, so that it can be repeated."""

    def do(self, folder: Path, place: Path) -> object:
        now = [0.0]
        scheduled = LanguageModelTask.lr_scheduler_step

        def ticks(self, *arguments: Any) -> None:
            now[0] += SECONDS_A_STEP
            scheduled(self, *arguments)

        def clock(**limits: Any) -> ProgressClock:
            return ProgressClock(now=lambda: now[0], **limits)

        LanguageModelTask.lr_scheduler_step = ticks  # type: ignore[method-assign]
        training.ProgressClock = clock  # type: ignore[assignment, misc]
        return super().do(folder, place)


class Ranks(Work):
    """Two processes; either of them is killed."""

    def plans(self, moments: list[str], draw: random.Random) -> list[Plan]:
        plans = super().plans(moments, draw)
        return [p._replace(kind="other") if i % 3 == 1 else p for i, p in enumerate(plans)]


class Sweep(Work):
    """Two jobs, started from the command line."""

    def do(self, folder: Path, place: Path) -> object:
        words = [word for word in self.words if not word.startswith("ckpt_path")]
        own = (f"data.path={place.parent}/text.txt", f"hydra.sweep.dir={folder}", "seed=1,2")
        sys.argv = ["train.py", "-m", *self.sizes, *words, "trainer.max_steps=14", *own]
        return launch("train")

    def compare(self, whole: Path, killed: Path) -> dict[str, int]:
        found: Counter[str] = Counter()
        for job in ("all/seed-1", "all/seed-2"):
            found.update(compare_runs(whole / job, killed / job))
        return dict(found)


class Export(Work):
    """An export over an earlier one: the artifact is whole at any moment."""

    def prepare(self, place: Path) -> None:
        until_done(lambda: Work("trainer.max_steps=3").do(place / "run", place), [])

    def do(self, folder: Path, place: Path) -> object:
        if (artifacts := list(folder.glob("artifact.*"))) != []:
            for path in artifacts:
                load_artifact(path)
        policy = "int4_gptq" if artifacts else "int8"
        for quantization in dict.fromkeys((policy, "int4_gptq")):
            sys.argv = ["export.py", f"ckpt_path={place}/run", f"hydra.run.dir={folder}"]
            sys.argv += [
                "export.protocols=[]",
                f"quantization={quantization}",
                "export.codecs=[zlib]",
            ]
            if code := launch("export"):
                return code
        return 0

    def plans(self, moments: list[str], draw: random.Random) -> list[Plan]:
        kinds = ("half", "complete", "named", "start")
        return [Plan(kinds[i % 4], draw.randint(1, 5), draw.random()) for i in range(len(moments))]

    def compare(self, whole: Path, killed: Path) -> dict[str, int]:
        return compare_files(whole, killed, ".json", ".md", ".yaml", ".log", ".lock")


class Cache(Work):
    """Prepare text in an empty cache."""

    def do(self, folder: Path, place: Path) -> object:
        self.words = (*COMMON, f"paths.cache={folder}", "describe=false", "trainer.max_steps=1")
        super().do(Path(tempfile.mkdtemp(dir=place)), place)
        return 0

    def plans(self, moments: list[str], draw: random.Random) -> list[Plan]:
        kinds = ("start", "half", "complete", "start", "named")
        return [Plan(kinds[i % 5], draw.randint(1, 3), draw.random()) for i in range(len(moments))]

    def compare(self, whole: Path, killed: Path) -> dict[str, int]:
        return compare_files(whole, killed, ".lock")


QAT = ("quantization.training.start=0.3", "quantization=int6", "objective=patch")
TIMED = ("trainer.max_steps=null", "trainer.max_time=7")
WORKS: dict[str, Work] = {
    "EMA, vicreg, the best ships": Work(
        "objective=vicreg", "average.decay=0.9", "average.ship=best"
    ),
    "SWA": Work("average.swa=true", "optimizer.schedule.lr.fraction=0.8", "objective=lewm"),
    "QAT": Work(*QAT),
    "Mamba-2": Work("objective=lewm", "model=mamba2", sizes=SMALL_MAMBA2),
    "accumulation, stream": Work("trainer.accumulate_grad_batches=4", "data.order=stream"),
    "wall clock": Simulated("objective=vicreg", "average.swa=true", *TIMED, timed=True),
    "two ranks": Ranks("trainer=ddp_sim", "trainer.precision=32-true", "average.decay=0.9"),
    "a sweep": Sweep(),
    "an export over an export": Export(),
    "filling the cache": Cache(),
}
KILLS_EACH = 6


def check(name: str, place: Path, moments: list[str], seed: int) -> Result:
    """Do a kind of work with and without kills, and compare the results.

    Raises:
        DifferenceError: naming what differs.
    """
    work, began = WORKS[name], time.monotonic()
    whole, killed = place / "whole", place / "killed"
    work.prepare(place)
    until_done(lambda: work.do(whole, place), [])
    history = until_done(lambda: work.do(killed, place), work.plans(moments, random.Random(seed)))
    kills = Counter(kind for kind, status in history if status in (KILLED, LOST_RANK))
    return Result(kills, work.compare(whole, killed), time.monotonic() - began)


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    schema.register()
    base = Path(tempfile.mkdtemp(prefix="kills-"))
    os.environ.setdefault("JEPA_LM_CACHE", str(base / "cache"))
    blocks = Austen().blocks("train")
    (base / "text.txt").write_text("".join(next(blocks).text for _ in range(4))[:60_000])
    table = Table(title=f"killed and gone on with, in {base}")
    for column in ("work", "kills", "at", "the same", "seconds"):
        table.add_column(column)
    total, failed = 0, 0
    moments = itertools.cycle(MOMENTS)
    for number, name in enumerate(WORKS):
        mine = list(itertools.islice(moments, KILLS_EACH))
        if names and name not in names:
            continue
        (place := base / str(number)).mkdir()
        try:
            kills, compared, seconds = check(name, place, mine, number)
        except AssertionError as error:
            failed += 1
            table.add_row(name, "", "", f"FAILED: {error}", "")
            continue
        total += kills.total()
        same = ", ".join(f"{count:,} {what}" for what, count in compared.items())
        at = ", ".join(f"{kind} {count}" for kind, count in kills.items())
        table.add_row(name, str(kills.total()), at, same, f"{seconds:.0f}")
    Console(width=150).print(table)
    print(f"{total} kills, {failed} of the works ended otherwise")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
