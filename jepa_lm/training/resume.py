"""Whether a checkpoint is one that this run can go on from: everything that it depends on is compared.

What differs is refused, told, or may differ, by one table of rules. A run's facts are its settings, as dotted
keys, and what only the data and the checkpoint can say: tokenizer, texts, ranks, optimizer groups, tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
from torch.optim import Optimizer

from jepa_lm.data.token_data import TokenData
from jepa_lm.loggers.metrics_csv import validated
from jepa_lm.model.checkpoint import portable, read_checkpoint
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.training.run_folder import set_later_aside
from jepa_lm.training.run_state import (
    check_moments,
    check_run_state,
    fingerprints,
    lacks,
    optimizer_groups,
)
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.provenance import Resumed
from jepa_lm.utils.trusted import Trust

Facts = dict[str, Any]
REFUSED, TOLD, FREE = "refused", "told", "free"
PLACE = "the place in the data would not be the same"
GROUPS = "the optimizer's moments belong to the groups of that run"
PARTS = "resume with the objective and average of that run"
DRAWS = "the random numbers would not be those of that run"


class Rule(NamedTuple):
    """What happens when a fact differs."""

    facts: str
    """A name, with * and ?."""
    then: str
    why: str = ""


RULES = (
    # What is run from here on, for how long, and where it is watched: a resumed run's own choice.
    Rule("task_name", FREE),
    Rule("tags", FREE),
    Rule("study*", FREE),
    Rule("paths.*", FREE),
    Rule("logger*", FREE),
    Rule("callbacks.*", FREE),
    Rule("checkpoint.*", FREE),
    Rule("ckpt_path", FREE),
    Rule("describe", FREE),
    Rule("compile", FREE),
    Rule("sample", FREE),
    Rule("sampling.*", FREE),
    Rule("probe", FREE),
    Rule("eval.*", FREE),
    Rule("temperature", FREE),
    Rule("trust*", FREE),
    Rule("limits.*", FREE),
    Rule("guard.*", FREE),
    Rule("average.*", FREE),  # whether there is one shows in the tensors
    Rule("ce_weight", FREE),
    Rule("z_loss_weight", FREE),
    Rule("quantization*", FREE),  # unless the run trains on stored weights, see below
    # Where the run stands in its data.
    Rule("data.seq_len", REFUSED, PLACE),
    Rule("data.batch_tokens", REFUSED, PLACE),
    Rule("data.order", REFUSED, PLACE),
    Rule("data.train_tokens", REFUSED, PLACE),
    Rule("trainer.accumulate_grad_batches", REFUSED, PLACE),
    Rule("ranks of data.order=stream", REFUSED, PLACE),
    Rule("tokenizer", REFUSED, "the text or the tokenizer file has changed"),
    Rule("training text", REFUSED, "resume with the data of that run"),
    Rule("validation text", TOLD, "its scores do not compare with earlier ones"),
    Rule("data.seed", REFUSED, DRAWS),
    Rule("seed", REFUSED, DRAWS),
    Rule("jepa*.seed", REFUSED, DRAWS),
    Rule("data*", FREE),  # where files are, how they are read: the texts decide
    # What the weights and the moments are of.
    Rule("model.kernel", FREE),
    Rule("model*", REFUSED, "resume with the settings of that run"),
    Rule("jepa*schedule._target_", FREE),
    Rule("jepa*_target_", REFUSED, PARTS),
    Rule("jepa*", FREE),
    Rule("tensor *", REFUSED, PARTS),
    Rule("optimizer.groups.*.match", REFUSED, GROUPS),
    Rule("optimizer.groups.*.algorithm", REFUSED, GROUPS),
    Rule("optimizer.freeze", REFUSED, GROUPS),
    Rule("optimizer groups", REFUSED, GROUPS),
    Rule("optimizer*", FREE),
    Rule("stored *", REFUSED, "the run trains on weights as they are stored"),
    Rule("trainer.precision", TOLD, "from here on the run computes otherwise"),
    Rule("trainer*", FREE),
)
"""The first one that fits a fact decides; a fact that none fits must be the same."""
NO_RULE = Rule("*", REFUSED, "resume with the settings of that run")
UNKNOWN = object()
"""A fact that an earlier version has not written down."""


def rule_of(fact: str) -> Rule:
    """What happens when this fact differs."""
    return next((rule for rule in RULES if fnmatchcase(fact, rule.facts)), NO_RULE)


def compare(before: Mapping[str, Any], now: Mapping[str, Any], source: str) -> None:
    """Hold the facts of a checkpoint against those of the run that would go on from it.

    Args:
        source: names the checkpoint, for messages.

    Raises:
        UserError: a difference that a resumed run must not have.
    """
    for fact in sorted(before.keys() | now.keys()):
        was, wanted = before.get(fact), now.get(fact)
        if was is UNKNOWN or was == wanted:
            continue
        rule = rule_of(fact)
        told = f"{source}: was trained with another {fact} ({_short(was)}, now {_short(wanted)}); {rule.why}"
        if rule.then == REFUSED:
            raise UserError(told)
        if rule.then == TOLD:
            warn(told)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def go_on(resume: Path, task: LanguageModelTask, data: TokenData, trainer: pl.Trainer) -> Resumed:
    """Check that a run may go on from a checkpoint; returns where it does.

    Raises:
        UserError: a difference, a checkpoint without what a run needs, or a folder with later ones.
    """
    source = f"ckpt_path={resume}"
    checkpoint = read_checkpoint(resume, Trust.of(task.config))
    check_run_state(checkpoint, source)
    try:  # what Lightning will read
        trainer.fit_loop.load_state_dict(copy.deepcopy(checkpoint["loops"]["fit_loop"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise lacks(source, "loops.fit_loop") from error
    if not trainer.global_step == checkpoint["global_step"] == checkpoint["clock"]["step"]:
        raise lacks(source, "loops.fit_loop")
    assert task.clock is not None
    optimizer, _ = task.recipe.configure(task, task.clock)
    now = facts_of_run(task, data, trainer.world_size, optimizer, checkpoint)
    compare(facts_of_checkpoint(checkpoint), now, source)
    check_moments(checkpoint["optimizer_states"][0]["state"], optimizer, source)
    step, run_dir = checkpoint["global_step"], Path(task.config["paths"]["run_dir"])
    if trainer.is_global_zero:
        set_later_aside(run_dir, resume, step)
    return Resumed(resume, step, validated(run_dir, step))


def facts_of_checkpoint(checkpoint: Mapping[str, Any]) -> Facts:
    """What is compared, as a checkpoint has it."""
    config = checkpoint["hyper_parameters"]["config"]
    texts = checkpoint.get("texts") or {"train": UNKNOWN, "val": UNKNOWN}
    return _settings(config) | {
        "tokenizer": checkpoint["tokenizer"],
        "training text": texts.get("train"),
        "validation text": texts.get("val"),
        "ranks of data.order=stream": _ranks(config, checkpoint.get("ranks", UNKNOWN)),
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
    """The same of a run that has not started; the checkpoint says whether it trains on stored weights."""
    texts = fingerprints(data)
    return _settings(task.config) | {
        "tokenizer": data.tokenizer.fingerprint,
        "training text": texts["train"],
        "validation text": texts["val"],
        "ranks of data.order=stream": _ranks(task.config, ranks),
        "optimizer groups": optimizer_groups(optimizer.param_groups),
        **_stored(task.config, checkpoint),
        **{f"tensor {name}": tuple(x.shape) for name, x in task.state_dict().items()},
    }


def _ranks(config: Mapping[str, Any], ranks: Any) -> Any:
    """Only the challenge's order depends on them."""
    return ranks if config["data"]["order"] == "stream" else None


def _stored(config: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Facts:
    """Formats, where the checkpoint's run has begun to train on them."""
    if checkpoint.get("stored_since") is None:
        return {}
    found = leaves(config["quantization"], "stored quantization")
    # What is off is as it was before there was such a setting.
    return {key: value for key, value in found.items() if value is not None and value is not False}


def _settings(config: Mapping[str, Any]) -> Facts:
    return leaves({**config, "model": portable(config["model"])})


def leaves(node: Any, path: str = "") -> Facts:
    """A nested config as dotted keys."""
    if not isinstance(node, Mapping):
        return {path: node}
    found: Facts = {}
    for key, value in node.items():
        found |= leaves(value, f"{path}.{key}" if path else str(key))
    return found
