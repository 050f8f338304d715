"""A budget in passes over the training split, turned into steps before anything else reads the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Positive, check_type
from jepa_lm.utils.nested import at

KEY = "trainer.max_epochs"
ROWS = (("corpus", "train_rows"), ("corpus", "source", "train_pairs"))
"""Settings of data whose rows are examples that say how many there are."""


def windows_in(tokens: int, seq_len: int) -> int:
    """Return the number of windows of a pass in random order; each has one more token than it reads."""
    return max(1, (tokens - 1) // seq_len)


def with_steps(config: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved config whose `trainer.max_steps` includes the limit of `trainer.max_epochs`.

    Raises:
        UserError: it is not known how long a pass is, or `max_steps` ends the run earlier.
    """
    trainer = config.get("trainer") or {}
    epochs = trainer.get("max_epochs")
    if epochs is None:
        return config
    check_type(KEY, epochs, Positive)
    steps = max(1, int(epochs * _steps_of_a_pass(epochs, config["data"])))
    limit = trainer["max_steps"]
    if limit is not None and limit < steps:
        raise UserError(
            f"{KEY}={epochs}: is {steps} steps here, but trainer.max_steps={limit} ends the run earlier; add "
            "trainer.max_steps=null"
        )
    return {**config, "trainer": {**trainer, "max_steps": steps}}


def _steps_of_a_pass(epochs: float, data: Mapping[str, Any]) -> float:
    rows_of_a_step = data["batch_tokens"] / data["seq_len"]
    for key in ROWS:
        if (rows := at(data, *key)) is not None:
            return float(rows / rows_of_a_step)
    tokens = data["train_tokens"]
    if tokens is None:
        rows_of_data = " or ".join(f"data.{'.'.join(key)}" for key in ROWS)
        raise UserError(
            f"{KEY}={epochs}: needs the size of a pass: data.train_tokens for text, {rows_of_data} for rows"
        )
    if data["order"] == "stream":
        return float(tokens / data["batch_tokens"])
    return windows_in(tokens, data["seq_len"]) / rows_of_a_step
