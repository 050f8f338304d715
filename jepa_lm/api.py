"""The Python interface: compose, train, load, runs. Each imports what it needs when it is called."""

from __future__ import annotations

import copy
import importlib
import os
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.going_on import key_of
from jepa_lm.utils.paths import called
from jepa_lm.utils.quoting import shell

if TYPE_CHECKING:
    from jepa_lm.artifact.trained_model import TrainedModel
    from jepa_lm.study.runs import Run

CACHE = "~/.cache/jepa_lm"
MANY = ("-m", "--multirun")
SWEEPS = ("sweep", "study")
RUN_DIR = "hydra.run.dir"
_COMPOSED: dict[int, tuple[DictConfig, Any]] = {}
"""Hydra's own part of each config of `compose` that still exists, and its contents, by its id."""


class Trained(NamedTuple):
    """What a training run left behind."""

    folder: Path
    summary: dict[str, Any]
    """Contents of summary.json."""
    score: float | None
    """Bits per byte of the validation split, or the run's `metric`; None if the run was not scored."""


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Return the config that `train.py` would get from the same words.

    `paths.run_dir` is a new folder below logs/, unless it or `hydra.run.dir` is among the overrides.

    Args:
        overrides: such as ["objective=vicreg", "jepa.weight=0.1"].
        config_dir: folder with YAML and modules of your own, as with `--config-dir`.

    Raises:
        UserError: a mistake in an override, or words that start several runs.
    """
    import hydra

    from jepa_lm.cli import import_from
    from jepa_lm.utils import schema
    from jepa_lm.utils.command_words import check_strays, check_words
    from jepa_lm.utils.crash import MENDABLE
    from jepa_lm.utils.explaining import explain, of_a_config
    from jepa_lm.utils.paths import CONF

    if isinstance(overrides, str):
        raise UserError(f"overrides={overrides}: expected a list of words, such as [{overrides!r}]")
    for word in overrides:
        if not isinstance(word, str):
            raise UserError(
                f"overrides: {word!r} is no text; expected words such as 'jepa.weight=0.1'"
            )
        if word in MANY or word.partition("=")[0].lstrip("+") in SWEEPS:
            raise UserError(
                f"{word}: starts several runs; use `{shell(called('train'))}`, or compose each run"
            )
    if config_dir is not None:
        import_from(str(config_dir))
    schema.register()
    # Hydra looks through the folders of sys.path for it, and an editable installation is not among them.
    importlib.import_module("hydra_plugins.jepa_lm_study")
    with _hydra_restored(), _words(overrides, config_dir):
        try:
            check_strays(overrides, "train", several=False)
            check_words(overrides)
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                search = [] if config_dir is None else [_search_path(config_dir)]
                words = ["paths.run_dir=", *search, *overrides]
                cfg = hydra.compose("train", words, return_hydra_config=True)
        except MENDABLE as error:
            raise UserError(explain(error, "train")[0]) from error
        except Exception as error:
            about_a_config = of_a_config(error)
            if about_a_config is None:
                raise
            raise about_a_config from error
    if not cfg.paths.run_dir and any(key_of(word) == RUN_DIR for word in overrides):
        cfg.paths.run_dir = cfg.hydra.run.dir
    if not cfg.paths.run_dir:
        now = time.strftime("%Y-%m-%d_%H-%M-%S") + f"-{time.time_ns() // 1000 % 1_000_000:06d}"
        cfg.paths.run_dir = f"logs/{cfg.task_name}/runs/{now}"
    _remember(cfg, [word for word in overrides if key_of(word) not in ("paths.run_dir", RUN_DIR)])
    return cfg


def _remember(cfg: DictConfig, words: list[str]) -> None:
    """Keep Hydra's own part of a composed config, with the words and the choices, for as long as it lives."""
    job = OmegaConf.masked_copy(cfg, "hydra")
    with open_dict(cfg), open_dict(job):
        del cfg["hydra"]
        job.hydra.overrides.task = words
    _COMPOSED[id(cfg)] = job, OmegaConf.to_container(cfg)
    weakref.finalize(cfg, _COMPOSED.pop, id(cfg)).atexit = False


@contextmanager
def _as_a_job(cfg: DictConfig) -> Iterator[None]:
    """Let the run's folder record how its config was composed, as it does for the command line.

    The words are left out if the config was changed since: they would not give it again.
    """
    from hydra.core.hydra_config import HydraConfig

    if id(cfg) not in _COMPOSED:
        yield
        return
    hydra: Any = HydraConfig.instance()
    before, (job, composed) = hydra.cfg, copy.deepcopy(_COMPOSED[id(cfg)])
    composed["paths"]["run_dir"] = cfg.paths.run_dir
    with open_dict(job):
        job.hydra.runtime.output_dir = str(cfg.paths.run_dir)
        if OmegaConf.to_container(cfg) != composed:
            job.hydra.overrides.task = MISSING
    hydra.cfg = job
    try:
        yield
    finally:
        hydra.cfg = before


def _search_path(folder: str | Path) -> str:
    return f"hydra.searchpath=[file://{Path(folder).resolve()}]"


@contextmanager
def _hydra_restored() -> Iterator[None]:
    """Set aside a Hydra that was initialised before, and put it back."""
    from hydra.core.global_hydra import GlobalHydra

    before, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before


@contextmanager
def _words(overrides: Sequence[str], config_dir: str | Path | None) -> Iterator[None]:
    """Let explanations of mistakes read these words in place of this process's command line."""
    before = sys.argv
    folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
    sys.argv = ["train.py", *folder, *overrides]
    try:
        yield
    finally:
        sys.argv = before


def train(cfg: DictConfig) -> Trained:
    """Train a model from a config of `compose`, as `train.py` does.

    Raises:
        UserError: a mistake in the config or the data.
    """
    from jepa_lm import run
    from jepa_lm.utils import process
    from jepa_lm.utils.files import read_object
    from jepa_lm.utils.paths import SUMMARY_FILE

    if not isinstance(cfg, DictConfig):
        raise UserError(f"cfg: expected a config of jepa_lm.compose, not {type(cfg).__name__}")
    process.tune()
    with _as_a_job(cfg):
        score = run.train(cfg)
    folder = Path(cfg.paths.run_dir)
    return Trained(folder, read_object(folder / SUMMARY_FILE), score)


def load(path: str | Path, device: str = "auto", trust: Sequence[str] = ()) -> TrainedModel:
    """Load a model from an artifact, a checkpoint, the folder of a run or of an export, or the hub.

    Args:
        path: a path; `last` for the latest run below logs/; or `hf://USER/NAME`, `hf://USER/NAME@REVISION`
            for an export that was pushed to the Hugging Face hub, which is fetched into the cache.
        device: auto, cpu, cuda or cuda:N.
        trust: modules of your own whose classes the file may name.

    Raises:
        UserError: no such file or repo, damaged, or its tokenizer cannot be had.
    """
    from jepa_lm.artifact.trained_model import load_trained
    from jepa_lm.utils import process
    from jepa_lm.utils.schema import Limits
    from jepa_lm.utils.trusted import Trust

    process.tune()
    cache = os.environ.get("JEPA_LM_CACHE", CACHE)
    trusted = Trust.of({"trust": list(trust), "limits": asdict(Limits())})
    return load_trained(str(path), device, trusted, cache)


def runs(folder: str | Path = "logs") -> list[Run]:
    """Return the runs below a folder, oldest first: folder, status, config, summary, bpb, objective.

    Raises:
        UserError: no such folder.
    """
    from jepa_lm.study.runs import find_runs

    if not Path(folder).is_dir():
        raise UserError(f"folder={folder}: no such folder; give one that holds runs, such as logs")
    return sorted(find_runs(Path(folder)), key=lambda run: run.folder.name)
