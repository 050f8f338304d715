"""Checks whether a run can resume from a checkpoint, by comparing the facts of both.

One table of rules says which differences are refused, which raise a warning, and which are allowed. A run's
facts are its settings, as dotted keys, and properties of the data and the checkpoint: tokenizer, texts,
ranks, optimizer groups, tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch.optim import Optimizer

from jepa_lm.data.token_data import TokenData
from jepa_lm.loggers.metrics_csv import validated
from jepa_lm.model.checkpoint import LAST_FILE, portable, read_checkpoint
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.training.run_folder import set_later_aside
from jepa_lm.training.run_state import (
    check_moments,
    check_run_state,
    fingerprints,
    lacks,
    optimizer_groups,
    qat_since,
)
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.going_on import command_of_run, key_of
from jepa_lm.utils.nested import flat
from jepa_lm.utils.provenance import Resumed
from jepa_lm.utils.quoting import cut
from jepa_lm.utils.trusted import Trust

Facts = dict[str, Any]
REFUSED, TOLD, FREE = "refused", "told", "free"
PLACE = "the position in the data would differ"
GROUPS = "the optimizer's moments belong to that run's groups"
PARTS = "resume with that run's objective and average"
DRAWS = "the random numbers would differ from that run's"


class Rule(NamedTuple):
    """What happens when a fact differs."""

    facts: str
    """Pattern for names of facts, with * and ?."""
    then: str
    why: str = ""


RULES = (
    # Budget, logging, scoring and the like: a resumed run may change them.
    Rule("task_name", FREE),
    Rule("metric", FREE),
    Rule("tags", FREE),
    Rule("study*", FREE),
    Rule("paths.*", FREE),
    Rule("logger*", FREE),
    Rule("callbacks.*", FREE),
    Rule("checkpoint.*", FREE),
    Rule("ckpt_path", FREE),
    Rule("describe", FREE),
    Rule("describe_for", FREE),
    Rule("compile", FREE),
    Rule("sample", FREE),
    Rule("sampling.*", FREE),
    Rule("probe", FREE),
    Rule("eval.*", FREE),
    Rule("temperature", FREE),
    Rule("trust*", FREE),
    Rule("limits.*", FREE),
    Rule("guard.*", FREE),
    Rule("average.*", FREE),  # the tensors show which averages exist
    Rule("ce_weight", FREE),
    Rule("z_loss_weight", FREE),
    Rule("quantization*", FREE),  # unless quantization-aware training has started, see below
    # The position in the data.
    Rule("data.seq_len", REFUSED, PLACE),
    Rule("data.batch_tokens", REFUSED, PLACE),
    Rule("data.order", REFUSED, PLACE),
    Rule("data.train_tokens", REFUSED, PLACE),
    Rule("trainer.accumulate_grad_batches", REFUSED, PLACE),
    Rule("ranks of data.order=stream", REFUSED, PLACE),
    Rule("tokenizer", REFUSED, "the text or the tokenizer file has changed"),
    Rule("training text", REFUSED, "resume with that run's data"),
    Rule("validation text", TOLD, "its scores are not comparable with earlier ones"),
    Rule("data.seed", REFUSED, DRAWS),
    Rule("seed", REFUSED, DRAWS),
    Rule("jepa*.seed", REFUSED, DRAWS),
    Rule("data*", FREE),  # paths and ways of reading; only the texts matter
    # Facts that weights and moments depend on.
    Rule("model.kernel", FREE),
    Rule("model*", REFUSED, "resume with that run's settings"),
    Rule("teacher", REFUSED, "the file at jepa.target.path has changed"),
    Rule("jepa*schedule._target_", FREE),
    Rule("jepa*_target_", REFUSED, PARTS),
    Rule("jepa*", FREE),
    Rule("tokens*.seed", REFUSED, DRAWS),
    Rule("tokens*schedule._target_", FREE),
    Rule("tokens*_target_", REFUSED, PARTS),
    Rule("tokens*", FREE),
    Rule("tensor *", REFUSED, PARTS),
    Rule("optimizer.groups.*.match", REFUSED, GROUPS),
    Rule("optimizer.groups.*.algorithm", REFUSED, GROUPS),
    Rule("optimizer.freeze", REFUSED, GROUPS),
    Rule("optimizer groups", REFUSED, GROUPS),
    Rule("optimizer*", FREE),
    Rule("stored *", REFUSED, "quantization-aware training has started"),
    Rule("trainer.precision", TOLD, "from here on the run uses another precision"),
    Rule("trainer*", FREE),
)
"""The first rule that matches a fact applies; a fact that matches none must not differ."""
NO_RULE = Rule("*", REFUSED, "resume with that run's settings")
UNKNOWN = object()
"""A fact that an earlier version did not record."""


def rule_of(fact: str) -> Rule:
    """Return the rule for a fact."""
    return next((rule for rule in RULES if fnmatchcase(fact, rule.facts)), NO_RULE)


def compare(before: Mapping[str, Any], now: Mapping[str, Any], source: str) -> None:
    """Compare the facts of a checkpoint with those of the run that would resume from it.

    Args:
        source: name of the checkpoint, for messages.

    Raises:
        UserError: a fact differs that must not.
    """
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
            warn(told)


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
    try:
        compare(facts_of_checkpoint(checkpoint), now, source)
    except UserError as error:
        raise UserError(f"{error}{_with_its_settings(resume)}") from error
    check_moments(checkpoint["optimizer_states"][0]["state"], optimizer, source)
    step, run_dir = checkpoint["global_step"], Path(task.config["paths"]["run_dir"])
    if trainer.is_global_zero:
        set_later_aside(run_dir, resume, step)
    compiled = bool(checkpoint["hyper_parameters"]["config"].get("compile"))
    return Resumed(resume, step, validated(run_dir, step), compiled)


def _with_its_settings(resume: Path) -> str:
    """Return how to resume with that run's settings, and with this command's where they may differ."""
    folder = resume.parent.parent if resume.parent.name == "checkpoints" else resume.parent
    now: Any = HydraConfig.instance().cfg
    known = now is not None and not OmegaConf.is_missing(now.hydra.overrides, "task")
    given = now.hydra.overrides.task if known else []
    free = [word for word in given if _may_differ(key_of(word))]
    source = folder if resume.name == LAST_FILE else resume
    again = command_of_run(folder, {"ckpt_path": str(source)}, free)
    return "" if again is None else f"; with its settings: {again}"


def _may_differ(key: str) -> bool:
    """Return whether a resumed run may set this key or group, whatever its data and its objective are."""
    return not key.startswith(("data", "jepa", "tokens")) and rule_of(key).then != REFUSED


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
