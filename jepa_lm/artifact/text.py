"""The text to score a model on: its run's own validation split, or text that the user names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from jepa_lm.artifact.loaded_model import LoadedModel, check_batch, load_data
from jepa_lm.data.split import Split
from jepa_lm.data.tokenizers import Tokenizer
from jepa_lm.data.whole_text import split_of_path
from jepa_lm.utils.errors import UserError


class Text(NamedTuple):
    """What is scored, and what came before it."""

    val: Split
    train: Split | None
    """Training text, for compressors; None if unknown."""
    path: str | None
    """Where the user's text is; None for the run's own."""


def text_to_score(
    loaded: LoadedModel,
    *,
    path: str | None,
    val_path: str | None,
    cache_dir: str,
    seq_len: int,
    batch_tokens: int,
) -> Text:
    """Open the text that a model is scored on.

    Args:
        path: file or folder to score as a whole, or validation shards. val_path: the same; `path` is then
            training text. If both are None, the run's own validation split is scored.
        seq_len: T, length of the windows. batch_tokens: tokens scored at a time.

    Raises:
        UserError: the text or the model's tokenizer cannot be had.
    """
    changes = {"cache_dir": cache_dir, "seq_len": seq_len, "val_batch_tokens": batch_tokens}
    if path is None and val_path is None:
        data = load_data(loaded, changes)
        return Text(data.split("val"), data.split("train"), None)
    check_batch(loaded, batch_tokens)
    cache = Path(os.path.expanduser(cache_dir))
    key = "data.path" if val_path is None else "data.val_path"
    tokenizer = _tokenizer(loaded, key, val_path or path, changes)
    special_ids = loaded.data["corpus"].get("special_ids", 0)

    def opened(key: str, place: str) -> Split:
        return split_of_path(
            key,
            place,
            tokenizer,
            cache,
            seq_len=seq_len,
            batch_tokens=batch_tokens,
            special_ids=special_ids,
        )

    if val_path is None:
        assert path is not None
        return Text(opened("data.path", path), None, path)
    before = None if path is None else opened("data.path", path)
    return Text(opened("data.val_path", val_path), before, val_path)


def _tokenizer(
    loaded: LoadedModel, key: str, place: str | None, changes: dict[str, object]
) -> Tokenizer:
    own = loaded.own_tokenizer()
    if own is not None:
        return own
    try:  # an artifact or a checkpoint of an earlier version: the tokenizer comes with the data
        return load_data(loaded, changes).tokenizer
    except UserError as error:
        raise UserError(
            f"{key}={place}: needs the tokenizer of the model, which is neither in {loaded.source} nor in a "
            f"tokenizer.model beside it, nor with its data ({error})"
        ) from error
