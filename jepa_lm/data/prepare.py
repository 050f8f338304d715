"""Build shard files from a corpus and a tokenizer, once, and cache them.

    text -> tokenizer (given, published or trained) -> [BOS] document [BOS] document ... -> shards

`prepared_folder` handles two runs that build the same data, and a run that is killed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jepa_lm.data.corpora import SPLITS, ShardCorpus, TextCorpus
from jepa_lm.data.documents import recut
from jepa_lm.data.prepared_folder import (
    Manifest,
    SourceText,
    place_to_build,
    read_manifest,
    write_manifest,
)
from jepa_lm.data.shards import ShardWriter, check_token_ids, open_shard
from jepa_lm.data.tokenizers import GivenTokenizer, SentencePieceBPE, Tokenizer, TokenizerSource
from jepa_lm.utils.console import bars
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.paths import TOKENIZER_FILE

FORMAT = 2
"""Part of the cache key; raise it when the prepared data changes."""
SHARD_TOKENS = 100_000_000
"""Tokens per shard, as in the published export."""


@dataclass(frozen=True)
class Prepared:
    """Data ready to train on. `texts` describes each split before tokenization, None if unknown."""

    train: list[Path]
    val: list[Path]
    tokenizer: Tokenizer
    texts: dict[str, SourceText] | None


def prepare(
    corpus: TextCorpus | ShardCorpus,
    tokenizer: TokenizerSource,
    cache_dir: Path,
    most_train: int | None = None,
) -> Prepared:
    """Return the shards and tokenizer of a corpus; build or download what is not in `cache_dir` yet.

    Args:
        most_train: see `ShardCorpus.shards`.

    Raises:
        UserError: bad text, bad shards, or a tokenizer of another size.
    """
    _make_cache(cache_dir)
    if isinstance(corpus, ShardCorpus):
        train, val, published = corpus.shards(cache_dir, most_train)
        for path in (*train, *val):
            open_shard(path)
        named = published or getattr(tokenizer, "model", None)
        if isinstance(tokenizer, SentencePieceBPE) and named is None:
            raise UserError(f"{corpus.no_tokenizer}; name it with data.tokenizer.model=FILE")
        built = tokenizer.build((), published)
        check_token_ids((*train, *val), built.vocab_size, notes=cache_dir / "checked")
        return Prepared(train, val, built, None)
    folder, manifest = _made(corpus, tokenizer, cache_dir, SPLITS)
    return Prepared(
        train=[folder / name for name in manifest.files if name.startswith("train_")],
        val=[folder / name for name in manifest.files if name.startswith("val_")],
        tokenizer=tokenizer.build(
            (), folder / TOKENIZER_FILE if TOKENIZER_FILE in manifest.files else None
        ),
        texts=manifest.texts,
    )


def prepare_whole(
    corpus: TextCorpus, tokenizer: Tokenizer, cache_dir: Path
) -> tuple[list[Path], SourceText]:
    """Return the shards of a corpus that is only validation, and its text.

    Raises:
        UserError: see `prepare`.
    """
    _make_cache(cache_dir)
    folder, manifest = _made(corpus, GivenTokenizer(tokenizer), cache_dir, ("val",))
    shards = [folder / name for name in manifest.files if name.startswith("val_")]
    return shards, manifest.texts["val"]


def is_prepared(
    corpus: TextCorpus | ShardCorpus, tokenizer: TokenizerSource, cache_dir: Path
) -> bool:
    """Return whether the cache holds a text with this tokenizer; shards need no preparation."""
    if isinstance(corpus, ShardCorpus):
        return False
    try:
        folder = _folder(corpus, tokenizer, cache_dir)
    except UserError:  # its tokenizer's file is gone
        return False
    return read_manifest(folder) is not None


def _make_cache(cache_dir: Path) -> None:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache_dir={cache_dir}: cannot write there ({error.strerror})"
        ) from error


def _folder(corpus: TextCorpus, tokenizer: TokenizerSource, cache_dir: Path) -> Path:
    return cache_dir / "prepared" / _cache_key(corpus, tokenizer)


def _made(
    corpus: TextCorpus, tokenizer: TokenizerSource, cache_dir: Path, splits: Sequence[str]
) -> tuple[Path, Manifest]:
    """Return the folder of these splits and its contents, built if it is not there."""
    folder = _folder(corpus, tokenizer, cache_dir)
    return folder, read_manifest(folder) or _make(corpus, tokenizer, folder, splits)


def _cache_key(corpus: TextCorpus, tokenizer: TokenizerSource) -> str:
    about = [str(FORMAT), corpus.fingerprint(), type(tokenizer).__name__, str(tokenizer.vocab_size)]
    if isinstance(tokenizer, SentencePieceBPE):
        about.append(str(tokenizer.train_bytes))
        if tokenizer.model is not None:
            about.append(tokenizer.build((), None).fingerprint)
    elif isinstance(tokenizer, GivenTokenizer):
        about.append(tokenizer.tokenizer.fingerprint)
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:20]


def _make(
    corpus: TextCorpus, tokenizer: TokenizerSource, folder: Path, splits: Sequence[str]
) -> Manifest:
    with place_to_build(folder) as new:
        if new is not None:
            _build(corpus, tokenizer, new, splits)
            if _cache_key(corpus, tokenizer) != folder.name:
                raise UserError("data: the text changed while it was read; start again")
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"data: {folder} does not hold what was just written there; check the disk")
    return manifest


def _build(
    corpus: TextCorpus, tokenizer: TokenizerSource, folder: Path, splits: Sequence[str]
) -> None:
    built = tokenizer.build(_training_text(corpus), None)
    texts = {}
    what = "encoding the text"
    with bars(what) as progress:
        task = progress.add_task(what, total=corpus.size())
        for split in splits:
            writer = _SplitWriter(built, folder, split)
            for seen in writer.write(corpus):
                progress.advance(task, seen)
            texts[split] = writer.text()
            if texts[split].bytes == 0:
                raise UserError(f"data: the {split} split holds no text")
    built.save(folder / TOKENIZER_FILE)
    write_manifest(folder, texts)


def _training_text(corpus: TextCorpus) -> Iterator[str]:
    """Yield the text to train a tokenizer on; each document begins on a new line."""
    for block in corpus.blocks("train"):
        yield f"\n{block.text}" if block.starts_document else block.text


class _SplitWriter:
    """Writes a split's shards and keeps the size and hash of its text."""

    def __init__(self, tokenizer: Tokenizer, folder: Path, split: str) -> None:
        self._tokenizer, self._folder, self._split = tokenizer, folder, split
        self._table = tokenizer.token_bytes()
        self._bytes, self._counted, self._hash = 0, 0, hashlib.sha256()
        self._last: int | None = None

    def write(self, corpus: TextCorpus) -> Iterator[int]:
        """Write all shards; yield the bytes of each block of text once it is written."""
        blocks = recut(corpus.blocks(self._split), self._tokenizer)
        block = next(blocks, None)
        number = 0
        while block is not None:
            path = self._folder / f"{self._split}_{number:06d}.bin"
            with ShardWriter(path) as shard:
                while block is not None and shard.tokens < SHARD_TOKENS:
                    ids = self._tokenizer.encode(block.text).astype(np.int64)
                    if block.starts_document and self._tokenizer.bos_id is not None:
                        ids = np.concatenate(([self._tokenizer.bos_id], ids))
                    shard.write(ids)
                    yield self._count(block.text.encode(), ids)
                    block = next(blocks, None)
            if shard.tokens == 0:  # a tokenizer may drop a whole text
                path.unlink()
            number += 1

    def _count(self, text: bytes, ids: np.ndarray) -> int:
        self._bytes += len(text)
        self._hash.update(text)
        if len(ids):
            first = self._table.base[ids[0]]
            if self._last is not None:
                first = self._table.count(np.array([self._last]), ids[:1])[0]
            self._counted += int(first + self._table.count(ids[:-1], ids[1:]).sum())
            self._last = int(ids[-1])
        return len(text)

    def text(self) -> SourceText:
        """Return the size and hash of the text written so far."""
        return SourceText(self._bytes, self._counted, self._hash.hexdigest())
