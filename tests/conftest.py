"""Shared fixtures: composed configs, one prepared cache, one small corpus, one tiny trained run."""

from __future__ import annotations

import functools
import gc
import json
import os
import pickle
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "startup"))

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from jepa_lm import cli
from jepa_lm.data.corpora import Austen
from jepa_lm.utils import schema
from jepa_lm.utils.paths import CONF
from tests import composing
from tests.sharing import once
from tests.wandb_file import Offline, runs_in

REPO = Path(__file__).resolve().parent.parent
STARTUP = REPO / "tests" / "startup"
"""Found first by this process and those that tests start: it makes importing Lightning quicker."""
FAST_MUON = "optimizer.groups.matrices.ns_dtype=float32"
"""Muon's products of matrices in bfloat16 are 10 to 60 times slower on a CPU without instructions for it."""
SMALL = (
    "data=text",
    "data.tokenizer.vocab_size=400",
    "data.seq_len=32",
    "data.batch_tokens=256",
    "data.val_batch_tokens=512",
    "model.dim=64",
    "model.backbone.layers=3",
    "model.backbone.heads=4",
    "model.backbone.kv_heads=2",
    "model.bigram.buckets=128",
    "trainer.precision=32-true",
    FAST_MUON,
    "trainer.max_steps=6",
    "trainer.log_every_n_steps=2",
    "checkpoint.every_n_steps=3",
    "sample=false",
)
"""A run of a second or two on a small text."""
MAMBA2 = ("model=mamba2", "model.backbone.head_dim=16", "model.backbone.state_dim=8")
SMALL_MAMBA2 = (*(x for x in SMALL if "heads" not in x and "bigram" not in x), *MAMBA2)
"""`SMALL` for the Mamba-2 backbone."""
SHALLOW = ("model.backbone.layers=5",)
VALUES = ("model.value_embedding.layers=[3,4]",)
"""Fewer blocks for a preset, and the ones of #1243 that read its value embedding: the last two."""
OFFLINE = ("logger=wandb", "logger.wandb.offline=true")
LONGEST = "test_trace_slow.py"
"""File of the longest test: three minutes."""

# Here and in processes that tests start, imports take two thirds of the time if bytecode is kept.
sys.dont_write_bytecode = False
torch.set_num_threads(1)
schema.register()
composing.keep_merged_files(pytest.MonkeyPatch())


def needs(found: object, what: str) -> pytest.MarkDecorator:
    """Return a mark that skips tests where something is missing; in CI on Linux they fail without it."""
    required = os.environ.get("CI") == "true" and sys.platform == "linux"
    return pytest.mark.skipif(not found and not required, reason=f"needs {what}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the file that takes longest first: at the end, one of two workers would wait for it alone."""
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def cache(session_folder: Path) -> Path:
    """One cache of prepared data for all tests and all workers."""
    folder = session_folder / "cache"
    os.environ["JEPA_LM_CACHE"] = str(folder)
    composed = session_folder / "composed"
    composed.mkdir(exist_ok=True)
    os.environ[composing.SHARED] = str(composed)
    os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")  # copies of artifacts
    paths = filter(None, (str(STARTUP), os.environ.get("PYTHONPATH")))
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    gc.freeze()  # a run collects garbage at its start; spare it everything already imported
    return folder


@pytest.fixture(scope="module", autouse=True)
def spared() -> None:
    """Spare collections of garbage, which every run makes at its start, what earlier files have left."""
    gc.collect(1)
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def counted() -> Iterator[Callable[[Any, int], dict[str, int]]]:
    """Put a guess in place of the FLOPs in the summaries of runs, and return the function that counts them.

    Counting takes a second for each run. `logged` is a run with all of its summary, and `trained` one with
    its memory: others do not give back what is free at their start, which takes a tenth of a second late in a
    session. Git, which is four processes for each run, is asked once.
    """
    from jepa_lm.commands import train
    from jepa_lm.training import summary
    from jepa_lm.training.flops import count_parameters
    from jepa_lm.utils import memory

    def guess(task: Any, steps: int) -> dict[str, int]:
        return {"model": 6 * count_parameters(task.model), "objective": 0}

    def untrimmed() -> memory.PeakMemory:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "libc", lambda function: None)
            return memory.PeakMemory()

    count = summary.flops_of_run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "flops_of_run", guess)
        patch.setattr(train, "PeakMemory", untrimmed)
        patch.setattr(train, "git_state", functools.cache(train.git_state))
        yield count


@pytest.fixture(scope="session")
def small_text(session_folder: Path) -> Path:
    """About 60 kB of real English."""

    def make(folder: Path) -> None:
        folder.mkdir()
        blocks = Austen().blocks("train")
        text = "".join(next(blocks).text for _ in range(4))[:60_000]
        (folder / "emma.txt").write_text(text)

    once(session_folder / "text", make)
    return session_folder / "text" / "emma.txt"


Compose = Callable[..., DictConfig]


@pytest.fixture(scope="session")
def teacher(session_folder: Path, small_text: Path) -> Path:
    """A checkpoint of `SMALL` after two steps, for objectives with a teacher."""
    from jepa_lm.run import train

    words = (*SMALL, f"data.path={small_text}", "seed=5", "trainer.max_steps=2")
    once(session_folder / "teacher", lambda folder: train(_config("train", *words, run_dir=folder)))
    return session_folder / "teacher" / "checkpoints" / "last.ckpt"


def _config(command: str, *words: str, run_dir: Path) -> DictConfig:
    """Return the config of a command in this folder."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(command, overrides=[*words, f"paths.run_dir={run_dir}"])


def needs_teacher(words: Sequence[str]) -> bool:
    """Return whether an objective among the overrides reads a teacher that they do not name."""
    named = any(word.startswith("jepa.target.path=") for word in words)
    return not named and any(word.startswith("objective=distil") for word in words)


@pytest.fixture
def compose(tmp_path: Path, small_text: Path, request: pytest.FixtureRequest) -> Compose:
    """compose("train", overrides...) returns the config that the command line would compose."""

    def make(command: str, *overrides: str, run_dir: Path | None = None) -> DictConfig:
        chosen = tuple(word for word in overrides if _chooses(word))
        values = [word for word in overrides if word not in chosen]
        if needs_teacher(overrides):
            values.append(f"jepa.target.path={request.getfixturevalue('teacher')}")
        cfg = pickle.loads(_composed(command, chosen))
        values.insert(0, f"paths.run_dir={run_dir or tmp_path / 'run'}")
        # Hydra does the same after it has merged the chosen files.
        parsed = OverridesParser.create().parse_overrides(values)
        ConfigLoaderImpl._apply_overrides_to_config(parsed, cfg)
        return cfg

    return make


def _chooses(word: str) -> bool:
    """Return whether an override chooses a file of a config group rather than setting a value."""
    group = word.lstrip("+~").split("=")[0].split("@")[0]
    return group.startswith("hydra") or (CONF / group).is_dir()


@functools.cache
def _composed(command: str, chosen: tuple[str, ...]) -> bytes:
    """Compose the chosen files once: Hydra takes half a second for it."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return pickle.dumps(hydra.compose(command, overrides=list(chosen)))


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """command("train", overrides...) -> (exit code, last line on stderr), in this process."""

    def run(name: str, *overrides: str) -> tuple[int, str]:
        where = f"hydra.run.dir={tmp_path}/out"
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *overrides, where])
        code = cli.launch(name)
        lines = capsys.readouterr().err.strip().splitlines()
        return code, lines[-1] if lines else ""

    return run


@pytest.fixture
def small(compose: Compose, small_text: Path) -> Compose:
    """small(overrides...) returns a small training config on real text."""

    def make(*overrides: str, run_dir: Path | None = None) -> DictConfig:
        path = f"data.path={small_text}"
        sizes = SMALL_MAMBA2 if "model=mamba2" in overrides else SMALL
        return compose("train", *sizes, path, *overrides, run_dir=run_dir)

    return make


@pytest.fixture
def answers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer in this process what an export asks of its fresh process, which saves seconds."""
    from jepa_lm.artifact import round_trip

    def asked(settings: dict[str, Any]) -> dict[str, Any]:
        return round_trip.answer_to(json.loads(json.dumps(settings)))

    monkeypatch.setattr(round_trip, "_asked", asked)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    bpb: float
    config: DictConfig

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def trained(session_folder: Path, small_text: Path) -> Run:
    """One small run, trained once for all tests that only read it."""
    from jepa_lm.commands import train as training
    from jepa_lm.run import train
    from jepa_lm.utils.memory import PeakMemory

    folder = session_folder / "trained"
    cfg = _config("train", *SMALL, f"data.path={small_text}", run_dir=folder)

    def make(folder: Path) -> float | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "PeakMemory", PeakMemory)
            return train(cfg)

    bpb = once(folder, make)
    assert bpb is not None
    return Run(folder, bpb, cfg)


@dataclass(frozen=True)
class Logged:
    """A finished run and the record that W&B wrote of it."""

    folder: Path
    run: Offline
    summary: dict[str, Any]


@pytest.fixture(scope="session")
def logged(
    session_folder: Path, small_text: Path, counted: Callable[[Any], dict[str, int]]
) -> Logged:
    """One run with an objective, logged offline in a group and with a name."""
    from jepa_lm.run import train
    from jepa_lm.training import summary

    named = ("++logger.wandb.group=weights", "++logger.wandb.name=vicreg 0.1 seed 1", "tags=[a,b]")
    measured = ("jepa.diagnostics.every=2", "trainer.val_check_interval=3")
    words = (*SMALL, f"data.path={small_text}", *OFFLINE, "objective=vicreg", *named, *measured)

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(summary, "flops_of_run", counted)
            train(_config("train", *words, run_dir=folder))

    folder = session_folder / "logged"
    once(folder, make)
    (run,) = runs_in(folder)
    return Logged(folder, run, json.loads((folder / "summary.json").read_text()))
