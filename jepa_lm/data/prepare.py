"""From a corpus and a tokenizer to shard files on disk, built once and cached.

    text -> tokenizer (given, published or trained) -> [BOS] document [BOS] document ... -> shards

A cached folder appears under its final name only when it is complete, so a killed run leaves no
half-built data, and two runs that build the same data at once do no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from jepa_lm.data.corpora import SPLITS, FineWeb, TextCorpus
from jepa_lm.data.shards import ShardWriter, check_token_ids, open_shard, without_special_ids
from jepa_lm.data.tokenizers import ByteTokenizer, SentencePieceBPE, Tokenizer
from jepa_lm.errors import UserError

FORMAT = 1
"""Goes into the cache key; raise it when prepared data would come out differently."""
SHARD_TOKENS = 100_000_000
"""As in the published export."""
SHOW_PROGRESS_BYTES = 50_000_000
"""Smaller corpora are encoded before a bar would be read."""


@dataclass(frozen=True)
class Prepared:
    """Data ready to train on. `text_bytes` are the source's bytes per split, None where unknown."""

    train: list[Path]
    val: list[Path]
    tokenizer: Tokenizer
    text_bytes: dict[str, int] | None


def prepare(
    corpus: TextCorpus | FineWeb, tokenizer: SentencePieceBPE | ByteTokenizer, cache_dir: Path
) -> Prepared:
    """Shards and tokenizer of a corpus; builds or downloads what is not in `cache_dir` yet.

    Raises:
        UserError: bad text, bad shards, a tokenizer of another size.
    """
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache_dir={cache_dir}: cannot write there ({error.strerror})"
        ) from error
    if isinstance(corpus, FineWeb):
        train, val, published = corpus.shards(cache_dir)
        for path in (*train, *val):
            open_shard(path)
        if drop := corpus.special_ids:
            folder = cache_dir / f"without_ids_below_{drop}"
            train, val = (
                [without_special_ids(path, drop, folder) for path in paths]
                for paths in (train, val)
            )
        if (
            isinstance(tokenizer, SentencePieceBPE)
            and published is None
            and tokenizer.model is None
        ):
            raise UserError(
                f"data.path={corpus.path}: no {corpus.tokenizer_file} beside the shards nor in a "
                "tokenizers folder above them; name it with data.tokenizer.model=FILE"
            )
        built = tokenizer.build((), published)
        check_token_ids((*train, *val), built.vocab_size, notes=cache_dir / "checked")
        return Prepared(train, val, built, None)
    folder = cache_dir / "prepared" / _cache_key(corpus, tokenizer)
    if not (folder / "corpus.json").is_file():
        _build(corpus, tokenizer, folder)
    model = folder / "tokenizer.model"
    text_bytes = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))["text_bytes"]
    return Prepared(
        train=sorted(folder.glob("train_*.bin")),
        val=sorted(folder.glob("val_*.bin")),
        tokenizer=tokenizer.build((), model if model.is_file() else None),
        text_bytes=text_bytes,
    )


def _cache_key(corpus: TextCorpus, tokenizer: SentencePieceBPE | ByteTokenizer) -> str:
    about = [str(FORMAT), corpus.fingerprint(), type(tokenizer).__name__, str(tokenizer.vocab_size)]
    if isinstance(tokenizer, SentencePieceBPE):
        about.append(str(tokenizer.train_bytes))
        if tokenizer.model is not None:
            about.append(tokenizer.build((), None).fingerprint)
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:20]


def _build(corpus: TextCorpus, tokenizer: SentencePieceBPE | ByteTokenizer, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        built = tokenizer.build((block.text for block in corpus.blocks("train")), None)
        text_bytes = {}
        quiet = corpus.size() < SHOW_PROGRESS_BYTES
        with Progress(console=Console(stderr=True), disable=quiet, transient=True) as bar:
            task = bar.add_task("encoding the text", total=corpus.size())
            for split in SPLITS:
                text_bytes[split] = 0
                for seen in _encode(corpus, built, split, building):
                    text_bytes[split] += seen
                    bar.update(task, advance=seen)
                if text_bytes[split] == 0:
                    raise UserError(f"data: the {split} split holds no text")
        built.save(building / "tokenizer.model")
        (building / "corpus.json").write_text(
            json.dumps({"text_bytes": text_bytes}), encoding="utf-8"
        )
        try:
            os.replace(building, folder)
        except OSError:
            if not (folder / "corpus.json").is_file():  # else another run finished first: use its
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _encode(corpus: TextCorpus, tokenizer: Tokenizer, split: str, folder: Path) -> Iterator[int]:
    """Write a split's shards; yields the bytes of each block of text as it is done."""
    blocks = corpus.blocks(split)
    block = next(blocks, None)
    number = 0
    while block is not None:
        with ShardWriter(folder / f"{split}_{number:06d}.bin") as shard:
            while block is not None and shard.tokens < SHARD_TOKENS:
                if block.starts_document and tokenizer.bos_id is not None:
                    shard.write([tokenizer.bos_id])
                shard.write(tokenizer.encode(block.text))
                yield len(block.text.encode())
                block = next(blocks, None)
        number += 1
