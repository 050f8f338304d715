"""Rows that are examples: from a generator or from pairs, kept as shards, never cut or joined.

    examples -> shards of rows [R, T + 1] and, beside them, what else is known of each row -> batches

A batch has, beside `inputs` and `targets` [B, T], the fields that are known of its rows: `latents` [B, T, K];
`answers` [B, T], the targets that count in the score; `whole` [B, T], those that are no padding; `weights`
[B, T] of the targets in training, 0 where one does not count and 1 on average over the training rows, so that
a mean over positions is the mean over answers on any number of ranks and micro-batches; and `views` [B, 4],
where its two views start and stop.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch

from jepa_lm.data.corpora import SPLITS, ShardCorpus, Shards
from jepa_lm.data.prepared_folder import place_to_build, read_manifest, write_manifest
from jepa_lm.data.questions import Labels, Questions
from jepa_lm.data.shards import ShardWriter, open_shard
from jepa_lm.data.stream import Batch, TokenStream
from jepa_lm.data.symbols import Symbols
from jepa_lm.data.synthetic.examples import Examples, Generator
from jepa_lm.data.tokenizers import TokenizerSource
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import read_object, write_json
from jepa_lm.utils.kinds import Count, Seed, Whole, checked

REMARKS = "remarks.json"
VIEWS = "views"
"""Field of a batch [B, 4]: where its two views start and stop."""
FORMAT = 2
"""Part of the cache key; raise it when generators draw other rows."""


class Rows(NamedTuple):
    """The rows of a split, opened."""

    tokens: np.ndarray
    """[R, T + 1] uint16."""
    fields: Mapping[str, np.ndarray]
    """What else a batch has, [R, T, ...] each."""
    law: float | None
    """What no model of any such rows can be expected to score below, in nats per target; None if unknown."""
    nats: np.ndarray | None
    """-log of the true probability of each target [R, T], where it is known."""
    questions: Questions | None
    """What judges answers that a model writes; None if rows ask nothing."""
    decoded: int
    """How many of the first rows a validation has the model answer."""
    labels: Mapping[str, Labels]
    """What probes are asked about the first rows, by name."""

    def batch(self, chosen: np.ndarray | slice) -> Batch:
        """Return the batch of these rows."""
        tokens = torch.from_numpy(self.tokens[chosen].astype(np.int64))
        more = {name: torch.from_numpy(np.array(x[chosen])) for name, x in self.fields.items()}
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], **more}

    @property
    def floor(self) -> float | None:
        """Nats per target that counts, below which no model can be expected to score; None if unknown."""
        return self.floor_of(slice(None))

    def floor_of(self, chosen: np.ndarray | slice) -> float | None:
        """Return the floor of these rows, None if they have no target that counts."""
        if self.nats is None:
            return self.law
        # Of these very rows, so that no chance of the sample is in the difference.
        answers, nats = self.fields.get("answers"), self.nats[chosen]
        counted = nats if answers is None else nats[answers[chosen]]
        return float(counted.mean(dtype=np.float64)) if counted.size else None

    def first(self, count: int) -> Rows:
        """Return the first rows."""
        return self._replace(
            tokens=self.tokens[:count],
            nats=None if self.nats is None else self.nats[:count],
            fields={name: x[:count] for name, x in self.fields.items()},
            decoded=min(self.decoded, count),
            labels={n: x._replace(values=x.values[:count]) for n, x in self.labels.items()},
        )

    def starts(self, count: int) -> np.ndarray:
        """Return the places of the first tokens that the first rows answer with, [count]."""
        return self.fields["answers"][:count].argmax(1) + 1  # target t is token t + 1


class RowCorpus(ShardCorpus):
    """Rows that are examples. A subclass says what they are."""

    length: int
    """T."""
    counted_by: str
    """The setting that says how many rows there are to train on."""
    reads_files = False
    """True if the rows are made from a user's files."""
    floor: float | None = None
    """What no model of the rows can be expected to score below, in nats per target; None if unknown."""
    decode_rows: int = 0
    """How many of the validation rows a validation has the model answer."""
    _folder: Path | None = None

    @abstractmethod
    def check(self, tokenizer: TokenizerSource, seq_len: int) -> None:
        """Raise UserError if the rows need another tokenizer or length."""

    @abstractmethod
    def examples(self, split: str) -> Examples:
        """Return the rows of a split."""

    @abstractmethod
    def _key(self) -> str:
        """Return a name for these rows in the cache, which changes whenever they do."""

    @property
    @abstractmethod
    def questions(self) -> Questions | None:
        """What the rows ask; None if nothing."""

    def labels(self, rows: int, split: str) -> Mapping[str, Labels]:
        """Return what probes are asked about the first of the `rows` rows of a split, by name."""
        return {}

    @property
    def shares(self) -> tuple[str, ...]:
        """Names of the shares of 1 that a validation measures beside the loss."""
        found = [] if self.questions is None else ["answer_accuracy"]
        if self.questions is not None and self.decode_rows:
            found += self.questions.rule_names
        return tuple(found)

    def shards(self, cache_dir: Path, most_train: int | None = None) -> Shards:
        self._folder = folder = cache_dir / "rows" / self._key()
        if read_manifest(folder) is None:
            with place_to_build(folder) as new:
                if new is not None:
                    for split in SPLITS:
                        self._write(new, split)
                    write_json(new / REMARKS, {"remarks": list(self.remarks)})
                    write_manifest(new, {})
        self.remarks = read_object(folder / REMARKS).get("remarks", [])
        return Shards([folder / "train.bin"], [folder / "val.bin"])

    def _write(self, folder: Path, split: str) -> None:
        found = self.examples(split)
        with ShardWriter(folder / f"{split}.bin") as shard:
            shard.write(found.tokens.ravel())
        for name, array in found._asdict().items():
            if array is not None and name != "tokens":
                np.save(folder / f"{split}_{name}.npy", array, allow_pickle=False)

    def opened(self) -> dict[str, Rows]:
        """Return the rows of each split, after `shards`."""
        assert self._folder is not None
        found = {split: self._read(self._folder, split) for split in SPLITS}
        train = _trained(found["train"])
        share = 1.0 if train is None else float(train.mean())
        if not share:
            raise UserError("data.corpus: no target of the training rows counts")
        return {split: self._rows_of(examples, share, split) for split, examples in found.items()}

    def _read(self, folder: Path, split: str) -> Examples:
        tokens = open_shard(folder / f"{split}.bin").reshape(-1, self.length + 1)
        others = {}
        for name in Examples._fields[1:]:
            path = folder / f"{split}_{name}.npy"
            exists = path.is_file()
            others[name] = np.load(path, mmap_mode="r", allow_pickle=False) if exists else None
        return Examples(tokens, **others)

    def _rows_of(self, found: Examples, share: float, split: str) -> Rows:
        """Return the rows of a split as batches need them.

        Args:
            share: of the targets that are trained on, in training.
        """
        named = {
            "latents": found.latents,
            "answers": found.answer,
            "whole": found.whole,
            VIEWS: found.views,
        }
        fields = {name: field for name, field in named.items() if field is not None}
        if (trained := _trained(found)) is not None:
            fields["weights"] = (trained / share).astype(np.float32)
        return Rows(
            tokens=found.tokens,
            fields=fields,
            law=self.floor,
            nats=found.nats,
            questions=self.questions,
            decoded=min(len(found.tokens), self.decode_rows),
            labels=self.labels(len(found.tokens), split),
        )


def _trained(found: Examples) -> np.ndarray | None:
    """Return which targets are trained on [R, T], None for all."""
    return found.answer if found.trained is None else found.trained


class GeneratedRows(RowCorpus):
    """Rows from a generator: a fixed training set and fresh rows to validate on.

    Args:
        generator: what the rows are. train_rows, val_rows: how many of each.
        seed: of the rows; the generator has a seed of its own law.
        decode_rows: how many of the validation rows a validation has the model answer token by token, where
            rows ask a question. probe_rows: how many training rows linear probes are fitted on, where a
            generator has labels; 0 for no probes.
    """

    counted_by = "data.corpus.train_rows"
    remedy = f"more rows with {counted_by}"

    @checked
    def __init__(
        self,
        *,
        generator: Generator,
        train_rows: Count,
        val_rows: Count,
        seed: Seed,
        decode_rows: Whole = 256,
        probe_rows: Whole = 2048,
    ) -> None:
        self.generator, self.seed = generator, seed
        self.decode_rows, self.probe_rows = decode_rows, probe_rows
        self.rows = {"train": train_rows, "val": val_rows}
        self.floor, self.length = generator.floor, generator.length

    def check(self, tokenizer: TokenizerSource, seq_len: int) -> None:
        generator = self.generator
        if not isinstance(tokenizer, Symbols):
            raise UserError(
                "data.tokenizer: generated rows are no text; use jepa_lm.data.symbols.Symbols"
            )
        if tokenizer.vocab_size != generator.vocab_size:
            raise UserError(
                f"data.tokenizer.vocab_size={tokenizer.vocab_size}: this generator has "
                f"{generator.vocab_size} symbols; set data.tokenizer.vocab_size={generator.vocab_size}"
            )
        if seq_len != generator.length:
            raise UserError(
                f"data.seq_len={seq_len}: rows are examples of {generator.length} tokens; set "
                f"data.seq_len={generator.length}"
            )
        tokenizer.named(generator.names)

    @property
    def questions(self) -> Questions | None:
        asks = self.generator.answer_length is not None
        return cast(Questions, self.generator) if asks else None

    @property
    def shares(self) -> tuple[str, ...]:
        probes = self.generator.label_names if self.probe_rows else ()
        return (*super().shares, *(f"probe_{name}" for name in probes))

    def labels(self, rows: int, split: str) -> Mapping[str, Labels]:
        probed = min(rows, self.probe_rows)
        return self.generator.labels(probed, self._place(split)) if probed else {}

    def _place(self, split: str) -> tuple[int, int]:
        """Return the seed of the rows of a split."""
        return self.seed, SPLITS.index(split)

    def examples(self, split: str) -> Examples:
        rows = self.rows[split]
        return self.generator.sample(rows, self._place(split), held_out=split == "val")

    def _key(self) -> str:
        """Hash the generator with its law, and what is asked of it."""
        told = [FORMAT, self.rows, self.seed, type(self.generator).__qualname__]
        digest = hashlib.sha256(json.dumps(told).encode())
        digest.update(pickle.dumps(vars(self.generator), protocol=5))  # never read again
        return digest.hexdigest()[:20]


class RowOrder:
    """Rows in random order, drawn again for each pass.

    The joint batch of all ranks is the same for any number of ranks.

    Args:
        rows: the training rows. count: rows of one rank's micro-batch.
    """

    def __init__(self, rows: Rows, *, count: int, rank: int, world_size: int, seed: int) -> None:
        self._rows, self._count, self._seed = rows, count, seed
        self._rank, self._world_size = rank, world_size
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def _row(self, place: int) -> int:
        """Return the row at a place, counted over all passes."""
        number, within = divmod(place, len(self._rows.tokens))
        if number != self._pass:
            rng = np.random.default_rng([self._seed, number])
            self._order, self._pass = rng.permutation(len(self._rows.tokens)), number
        return int(self._order[within])

    def places(self, total: int, index: int) -> np.ndarray:
        """Return the numbers of the rows."""
        first = (index * self._world_size + self._rank) * self._count
        return np.array([self._row(first + i) for i in range(self._count)])

    def batch(self, stream: TokenStream, index: int) -> Batch:
        return self._rows.batch(self.places(0, index))

    def share(self, total: int) -> tuple[int, int]:
        """Count in rows."""
        return self._world_size * self._count, len(self._rows.tokens)


class RowWindows(torch.utils.data.Dataset[Batch]):
    """The rows of a split, `count` at a time."""

    def __init__(self, rows: Rows, count: int) -> None:
        self._rows, self._count = rows, count

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._rows.tokens) // self._count)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._rows.batch(slice(index * self._count, (index + 1) * self._count))
