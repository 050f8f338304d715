"""A budget in passes over the training split, turned into steps before anything else reads the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, Positive, check_type
from jepa_lm.utils.nested import at

KEY = "trainer.max_epochs"
SIZES = ("batch_tokens", "seq_len", "train_tokens")
ROWS = (("corpus", "train_rows"), ("corpus", "source", "train_pairs"))
"""Settings of data whose rows are examples that say how many there are."""


def windows_in(tokens: int, seq_len: int) -> int:
    """Return the number of windows of a pass in random order; each has one more token than it reads."""
    return max(1, (tokens - 1) // seq_len)


def with_steps(config: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved config whose `trainer.max_steps` includes the limit of `trainer.max_epochs`.

    Raises:
        UserError: it is not known how long a pass is, `max_steps` ends the run earlier, or a value that they
            are counted from has a wrong type.
    """
    trainer = config.get("trainer") or {}
    epochs = trainer.get("max_epochs")
    if epochs is None:
        return config
    check_type(KEY, epochs, Positive)
    steps = max(1, int(epochs * _steps_of_a_pass(epochs, config["data"])))
    limit = _count("trainer.max_steps", trainer.get("max_steps"))
    if limit is not None and limit < steps:
        raise UserError(
            f"{KEY}={epochs}: is {steps} steps here, but trainer.max_steps={limit} ends the run earlier; add "
            "trainer.max_steps=null"
        )
    return {**config, "trainer": {**trainer, "max_steps": steps}}


def _steps_of_a_pass(epochs: float, data: Mapping[str, Any]) -> float:
    batch, seq_len, tokens = (_count(f"data.{key}", data.get(key)) for key in SIZES)
    if batch is None or seq_len is None:
        raise UserError(f"{KEY}={epochs}: needs data.batch_tokens and data.seq_len")
    rows_of_a_step = batch / seq_len
    for key in ROWS:
        if (rows := _count(f"data.{'.'.join(key)}", at(data, *key))) is not None:
            return rows / rows_of_a_step
    if tokens is None:
        rows_of_data = " or ".join(f"data.{'.'.join(key)}" for key in ROWS)
        raise UserError(
            f"{KEY}={epochs}: needs the size of a pass: data.train_tokens for text, {rows_of_data} for rows"
        )
    if data["order"] == "stream":
        return tokens / batch
    return windows_in(tokens, seq_len) / rows_of_a_step


def _count(key: str, value: Any) -> int | None:
    check_type(key, value, Count | None)
    return None if value is None else int(value)
