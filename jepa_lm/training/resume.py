"""Checks whether a run can resume from a checkpoint, by comparing the facts of both.

`resume_rules.py` says what happens when they differ. A run's facts are its settings, as dotted keys, and
properties of the data and the checkpoint: tokenizer, texts, ranks, optimizer groups, tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch.optim import Optimizer

from jepa_lm.data.token_data import TokenData
from jepa_lm.loggers.metrics_csv import validated
from jepa_lm.model.checkpoint import LAST_FILE, portable, read_checkpoint
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.training.resume_rules import LISTED, REFUSED, TOLD, rule_of
from jepa_lm.training.run_folder import set_later_aside
from jepa_lm.training.run_state import (
    check_moments,
    check_run_state,
    fingerprints,
    lacks,
    optimizer_groups,
    qat_since,
)
from jepa_lm.utils.errors import UserError, warn, warn_once_per_machine
from jepa_lm.utils.finding import AUTO
from jepa_lm.utils.going_on import command_of_run, key_of
from jepa_lm.utils.nested import flat
from jepa_lm.utils.provenance import Resumed
from jepa_lm.utils.quoting import cut
from jepa_lm.utils.trusted import Trust

Facts = dict[str, Any]
NAMED = 3
"""Largest number of settings that the line about listed ones names."""
UNKNOWN = object()
"""A fact that an earlier version did not record."""


def compare(before: Mapping[str, Any], now: Mapping[str, Any], source: str) -> list[str]:
    """Compare the facts of a checkpoint with those of the run that would resume from it.

    Args:
        source: name of the checkpoint, for messages.

    Returns:
        The facts to list.

    Raises:
        UserError: a fact differs that must not.
    """
    listed = []
    for fact in sorted(before.keys() | now.keys()):
        was, wanted = before.get(fact), now.get(fact)
        if was is UNKNOWN or was == wanted:
            continue
        rule = rule_of(fact)
        told = (
            f"{source}: was trained with a different {fact} ({cut(str(was), 80)}, now "
            f"{cut(str(wanted), 80)}); {rule.why}"
        )
        if rule.then == REFUSED:
            raise UserError(told)
        if rule.then == TOLD:
            warn_once_per_machine(told)
        if rule.then == LISTED:
            listed.append(fact)
    return listed


def go_on(resume: Path, task: LanguageModelTask, data: TokenData, trainer: pl.Trainer) -> Resumed:
    """Check that a run can resume from a checkpoint; return what the run has to know of it.

    Raises:
        UserError: the run differs, the checkpoint lacks what a run needs, or the folder holds later ones.
    """
    source = f"ckpt_path={resume}"
    checkpoint = read_checkpoint(resume, Trust.of(task.config))
    check_run_state(checkpoint, source)
    try:  # as Lightning will
        trainer.fit_loop.load_state_dict(copy.deepcopy(checkpoint["loops"]["fit_loop"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise lacks(source, "loops.fit_loop") from error
    if not trainer.global_step == checkpoint["global_step"] == checkpoint["clock"]["step"]:
        raise lacks(source, "loops.fit_loop")
    optimizer, _ = task.recipe.configure(task, task.clock)
    now = facts_of_run(task, data, trainer.world_size, optimizer, checkpoint)
    before, run_dir = facts_of_checkpoint(checkpoint), Path(task.config["paths"]["run_dir"])
    try:
        listed = compare(before, now, source)
    except UserError as error:
        raise UserError(f"{error}{_with_its_settings(resume, run_dir, _may_differ)}") from error
    check_moments(checkpoint["optimizer_states"][0]["state"], optimizer, source)
    step = checkpoint["global_step"]
    if trainer.is_global_zero and (others := _other_settings(listed, before, now)):
        warn(f"{source}: {others}{_with_its_settings(resume, run_dir, _is_kept)}")
    if trainer.is_global_zero:
        set_later_aside(run_dir, resume, step)
    compiled = bool(checkpoint["hyper_parameters"]["config"].get("compile"))
    return Resumed(resume, step, validated(run_dir, step), compiled)


def _other_settings(listed: list[str], before: Facts, now: Facts) -> str:
    """Say which listed facts differ, but for those that the command names; empty if there are none."""
    asked = tuple(key.replace("/", ".") for key in map(key_of, _given()) if _is_kept(key))
    unasked = [f for f in listed if not any(f == key or f.startswith(f"{key}.") for key in asked)]
    told = [
        f"{fact}: was {_shown(before.get(fact))}, is now {_shown(now.get(fact))}"
        for fact in unasked[:NAMED]
    ]
    more = [f"and {len(unasked) - NAMED} more"] if len(unasked) > NAMED else []
    return f"goes on with other settings ({'; '.join([*told, *more])})" if told else ""


def _shown(value: Any) -> str:
    return "null" if value is None else cut(str(value), 40)


def _given() -> list[str]:
    """Return the overrides of this command; none if Python code made the config."""
    now: Any = HydraConfig.instance().cfg
    known = now is not None and not OmegaConf.is_missing(now.hydra.overrides, "task")
    return list(now.hydra.overrides.task) if known else []


def _with_its_settings(resume: Path, run_dir: Path, keeps: Callable[[str], bool]) -> str:
    """Return how to resume with that run's settings, and with those of this command that `keeps` allows."""
    folder = resume.parent.parent if resume.parent.name == "checkpoints" else resume.parent
    changes = {"ckpt_path": str(folder if resume.name == LAST_FILE else resume)}
    if folder.resolve() == run_dir.resolve():
        changes = {"hydra.run.dir": str(run_dir), "ckpt_path": AUTO}
    again = command_of_run(folder, changes, [word for word in _given() if keeps(key_of(word))])
    return "" if again is None else f"; with its settings: {again}"


def _is_kept(key: str) -> bool:
    """Return whether this key or group of the command stays where a run may go on with its settings."""
    return rule_of(key).then != REFUSED


def _may_differ(key: str) -> bool:
    """Return whether a resumed run may set this key or group, whatever its data and its objective are."""
    return not key.startswith(("data", "jepa", "tokens")) and _is_kept(key)


def facts_of_checkpoint(checkpoint: Mapping[str, Any]) -> Facts:
    """Return the facts of a checkpoint."""
    config = checkpoint["hyper_parameters"]["config"]
    texts = checkpoint.get("texts") or {"train": UNKNOWN, "val": UNKNOWN}
    return _settings(config) | {
        "tokenizer": checkpoint["tokenizer"],
        "training text": texts.get("train"),
        "validation text": texts.get("val"),
        "ranks of data.order=stream": _ranks(config, checkpoint.get("ranks", UNKNOWN)),
        "teacher": _teacher(checkpoint.get("teacher")),
        "optimizer groups": optimizer_groups(checkpoint["optimizer_states"][0]["param_groups"]),
        **_stored(config, checkpoint),
        **{f"tensor {name}": tuple(x.shape) for name, x in checkpoint["state_dict"].items()},
    }


def facts_of_run(
    task: LanguageModelTask,
    data: TokenData,
    ranks: int,
    optimizer: Optimizer,
    checkpoint: Mapping[str, Any],
) -> Facts:
    """Return the facts of a run that has not started; the checkpoint says whether QAT has begun."""
    texts = fingerprints(data)
    return _settings(task.config) | {
        "tokenizer": data.tokenizer.fingerprint,
        "training text": texts["train"],
        "validation text": texts["val"],
        "ranks of data.order=stream": _ranks(task.config, ranks),
        "teacher": _teacher(None if task.objective is None else task.objective.target.record),
        "optimizer groups": optimizer_groups(optimizer.param_groups),
        **_stored(task.config, checkpoint),
        **{f"tensor {name}": tuple(x.shape) for name, x in task.state_dict().items()},
    }


def _teacher(record: Any) -> Any:
    """Return the hash of a teacher's file, wherever the file lies; None without a teacher."""
    return record.get("sha256") if isinstance(record, Mapping) else None


def _ranks(config: Mapping[str, Any], ranks: Any) -> Any:
    """Return the number of ranks if the data order depends on it (the challenge's does), else None."""
    return ranks if config["data"]["order"] == "stream" else None


def _stored(config: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Facts:
    """Return the quantization settings if the checkpoint's run has begun QAT, else nothing."""
    if qat_since(checkpoint) is None:
        return {}
    found = _leaves(config["quantization"], "stored quantization.")
    # A setting that is off equals its absence in checkpoints of earlier versions.
    return {key: value for key, value in found.items() if value is not None and value is not False}


def _settings(config: Mapping[str, Any]) -> Facts:
    return _leaves({**config, "model": portable(config["model"])})


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Facts:
    """Return the values of a config by dotted key, without empty mappings, which set nothing."""
    return {key: value for key, value in flat(node, prefix).items() if value != {}}
