"""What happens when a fact of a checkpoint differs in the run that would resume from it: a table of rules.

A difference is refused, raises a warning, is listed with the others in one line, or is allowed in silence.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

REFUSED, TOLD, LISTED, FREE = "refused", "told", "listed", "free"
FREE_OF_TRAINER = (
    *("max_*", "log_every_n_steps", "enable_*", "profiler", "default_root_dir"),
    *("accelerator", "devices", "num_nodes", "strategy*"),
)
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
    # A resumed run may change these. Those that change what it computes are listed if its command does not
    # name them; budget, machine, logging and what is printed are not.
    Rule("task_name", FREE),
    Rule("metric", LISTED),
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
    Rule("temperature", LISTED),
    Rule("trust*", FREE),
    Rule("limits.*", FREE),
    Rule("guard.*", LISTED),
    Rule("average.*", LISTED),  # the tensors show which averages exist
    Rule("ce_weight", LISTED),
    Rule("z_loss_weight", LISTED),
    Rule("quantization*", LISTED),  # unless quantization-aware training has started, see below
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
    Rule("data.noise", LISTED),
    Rule("data*", FREE),  # paths and ways of reading; only the texts matter
    # Facts that weights and moments depend on.
    Rule("model.kernel", FREE),
    Rule("model*", REFUSED, "resume with that run's settings"),
    Rule("teacher", REFUSED, "the file at jepa.target.path has changed"),
    Rule("jepa*schedule._target_", LISTED),
    Rule("jepa*_target_", REFUSED, PARTS),
    Rule("jepa*", LISTED),
    Rule("tokens*.seed", REFUSED, DRAWS),
    Rule("tokens*schedule._target_", LISTED),
    Rule("tokens*_target_", REFUSED, PARTS),
    Rule("tokens*", LISTED),
    Rule("tensor *", REFUSED, PARTS),
    Rule("optimizer.groups.*.match", REFUSED, GROUPS),
    Rule("optimizer.groups.*.algorithm", REFUSED, GROUPS),
    Rule("optimizer.freeze", REFUSED, GROUPS),
    Rule("optimizer groups", REFUSED, GROUPS),
    Rule("optimizer*", LISTED),
    Rule("stored *", REFUSED, "quantization-aware training has started"),
    Rule("trainer.precision", TOLD, "from here on the run uses another precision"),
    *(Rule(f"trainer.{key}", FREE) for key in FREE_OF_TRAINER),
    Rule("trainer*", LISTED),
)
"""The first rule that matches a fact applies; a fact that matches none must not differ."""
NO_RULE = Rule("*", REFUSED, "resume with that run's settings")


def rule_of(fact: str) -> Rule:
    """Return the rule for a fact."""
    return next((rule for rule in RULES if fnmatchcase(fact, rule.facts)), NO_RULE)
