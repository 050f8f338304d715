"""Text that is scored as a whole: files of a user, shards of tokens, or a string."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jepa_lm.data.documents import Block, recut
from jepa_lm.data.prepare import prepare_whole
from jepa_lm.data.prepared_folder import SourceText
from jepa_lm.data.shards import check_token_ids, without_special_ids
from jepa_lm.data.split import Split
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.text_folders import text_files
from jepa_lm.data.tokenizers import Tokenizer
from jepa_lm.utils.errors import UserError

SHARDS = "*_val_*.bin"
"""Shards of validation tokens in a folder; a single shard may have any name that ends in .bin."""


class WholeText:
    """The text of a file or a folder, all of it validation.

    Args:
        key: setting that holds the path, for messages. path: file or folder.

    Raises:
        UserError: see `text_files`.
    """

    def __init__(self, key: str, path: str) -> None:
        self._files, self.remarks = text_files(key, path)

    def fingerprint(self) -> str:
        """Return a hash of the files' contents."""
        stamps = (file.stamp(True) for file in self._files)
        return "whole-" + hashlib.sha256("\n".join(stamps).encode()).hexdigest()

    def blocks(self, split: str = "val") -> Iterator[Block]:
        """Yield all documents; there is no training text."""
        for file in self._files if split == "val" else ():
            yield from file.blocks()

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(file.size for file in self._files)


def split_of_path(
    key: str,
    path: str,
    tokenizer: Tokenizer,
    cache_dir: Path,
    *,
    seq_len: int,
    batch_tokens: int,
    special_ids: int = 0,
) -> Split:
    """Open all text at a path, or the validation shards there.

    Args:
        key: setting that holds the path, for messages. special_ids: see `FineWeb`; only shards have them.

    Raises:
        UserError: no text, or shards that this tokenizer cannot have made.
    """
    corpus = text = None
    if shards := _shards(Path(os.path.expanduser(path))):
        if special_ids:
            folder = cache_dir / f"without_ids_below_{special_ids}"
            shards = [without_special_ids(shard, special_ids, folder) for shard in shards]
        check_token_ids(shards, tokenizer.vocab_size, notes=cache_dir / "checked")
    else:
        corpus = WholeText(key, path)
        shards, text = prepare_whole(corpus, tokenizer, cache_dir)
    blocks = None if corpus is None else corpus.blocks
    stream = _with_targets(TokenStream(shards), f"{key}={path}")
    return Split(stream, tokenizer, seq_len, batch_tokens, text, blocks)


def split_of_text(text: str, tokenizer: Tokenizer, *, seq_len: int, batch_tokens: int) -> Split:
    """Open a string as one document, with the ids that a file with this text would get.

    Raises:
        UserError: the text is blank.
    """
    if not text.strip():
        raise UserError("text: is empty or blank; nothing to score")
    table, ids = tokenizer.token_bytes(), []
    if tokenizer.bos_id is not None:
        ids.append(np.array([tokenizer.bos_id]))
    ids += [tokenizer.encode(block.text) for block in recut([Block(text, True)], tokenizer)]
    tokens = np.concatenate(ids).astype(np.int64)
    counted = int(table.base[tokens[:1]].sum() + table.count(tokens[:-1], tokens[1:]).sum())
    raw = text.encode()
    source = SourceText(len(raw), counted, hashlib.sha256(raw).hexdigest())
    stream = _with_targets(TokenStream.of(tokens), "text")
    whole = [Block(text, True)]
    return Split(stream, tokenizer, seq_len, batch_tokens, source, lambda: iter(whole))


def _shards(path: Path) -> list[Path]:
    if path.suffix == ".bin" and path.is_file():
        return [path]
    return sorted(path.glob(SHARDS)) if path.is_dir() else []


def _with_targets(stream: TokenStream, source: str) -> TokenStream:
    if stream.total < 2:
        raise UserError(f"{source}: has {stream.total} token; at least 2 are needed for a score")
    return stream
