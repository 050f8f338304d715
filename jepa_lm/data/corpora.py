"""Sources of text: the embedded novels, a user's files, the published FineWeb shards.

A text corpus yields its documents in blocks of bounded size, so it is never held in memory as a whole.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

from jepa_lm.data.documents import Block
from jepa_lm.data.shards import without_special_ids
from jepa_lm.data.text_files import TextFile
from jepa_lm.data.text_folders import listed, text_files
from jepa_lm.data.text_splits import hold_out, without
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, Range, Whole, checked

InnerShare = Annotated[float, Range(above=0, below=1)]
SPLITS = ("train", "val")
HASHED_BYTES = 1 << 28
"""Text up to this size is identified by content, which takes a second; above it, by size, time and ends."""


class TextCorpus(Protocol):
    """Text that still has to be tokenized."""

    remarks: list[str]
    """Remarks on text that was left out, shown when a run starts."""

    def fingerprint(self) -> str:
        """Return a string that changes whenever the text or the split changes."""
        ...

    def blocks(self, split: str) -> Iterator[Block]:
        """Yield the documents of a split, in order."""
        ...

    def size(self) -> int:
        """Return the bytes of text in all splits, for the progress bar."""
        ...


class Shards(NamedTuple):
    """Shard files on this machine, and the SentencePiece model that they were made with, if it is known."""

    train: list[Path]
    val: list[Path]
    tokenizer: Path | None = None


class ShardCorpus(ABC):
    """Text that is already tokenized, in shard files."""

    remarks: Sequence[str] = ()
    """See `TextCorpus`."""
    remedy = "more training shards"
    """What gives a longer run more text, for a warning."""
    no_tokenizer = "data.tokenizer.model=null: the shards come without a tokenizer"
    """What is wrong if `shards` finds no tokenizer and the config names none."""

    @abstractmethod
    def shards(self, cache_dir: Path, most_train: int | None = None) -> Shards:
        """Return the shards of both splits; write or download what is missing into `cache_dir`.

        Args:
            most_train: number of training shards that will be read, None for all. A corpus that has more at
                hand may return them.
        """


class Austen:
    """The embedded corpus: six novels; Persuasion is validation, each chapter is a document."""

    VALIDATION, TUNING = "persuasion", "northangerabbey"
    _chapter = re.compile(r"^(?:VOLUME [IVX]+\n)?chapter \w+$", re.MULTILINE | re.IGNORECASE)

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self.validation, self.held_out = self.VALIDATION, {self.VALIDATION}

    def keep_novel(self, *, scored: bool) -> None:
        """Keep a novel for the choice of settings, neither training nor validation unless it is `scored`."""
        self.held_out = {self.VALIDATION, self.TUNING}
        self.validation = self.TUNING if scored else self.VALIDATION

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in self._names():
            digest.update(self._packed(name))
        splits = "" if self.TUNING not in self.held_out else f"-{self.TUNING}-{self.validation}"
        return f"austen-{digest.hexdigest()}{splits}"

    def blocks(self, split: str) -> Iterator[Block]:
        for name in self._names():
            here = name == self.validation if split == "val" else name not in self.held_out
            if here:
                for chapter in self.chapters(lzma.decompress(self._packed(name)).decode()):
                    yield Block(chapter, True)

    def size(self) -> int:
        return sum(len(lzma.decompress(self._packed(name))) for name in self._names())

    @classmethod
    def chapters(cls, novel: str) -> list[str]:
        """Cut a novel before each chapter heading; joined, the parts give the novel again."""
        starts = [match.start() for match in cls._chapter.finditer(novel)]
        cuts = [0, *starts[1:], len(novel)]  # the title page belongs to the first chapter
        return [novel[a:b] for a, b in pairwise(cuts)]

    @staticmethod
    def _names() -> list[str]:
        folder = resources.files("jepa_lm.data") / "austen"
        return sorted(f.name.split(".")[0] for f in folder.iterdir() if f.name.endswith(".xz"))

    @staticmethod
    def _packed(name: str) -> bytes:
        return (resources.files("jepa_lm.data") / "austen" / f"{name}.txt.xz").read_bytes()


class TextFiles:
    """A user's text: a file, or a folder of .txt, .md and .jsonl files, compressed or not.

    A plain file is one document; in a .jsonl file each line is one (its `text` field). The validation split
    is `val_path`, or the last `val_fraction` of all bytes, cut at a line end. Files of `val_path` that are
    also in `path` are left out of training.

    Args:
        path: file or folder. val_path: file or folder, or None.
        val_fraction: share of the bytes held out, in (0, 1).

    Raises:
        UserError: the path does not exist, holds no text, is not UTF-8, or has an invalid line of JSON.
    """

    @checked
    def __init__(self, *, path: str | None, val_path: str | None, val_fraction: InnerShare) -> None:
        if path is None:
            raise UserError(
                "data.path is not set; data=text reads a file, a folder or a .jsonl from it"
            )
        self._fraction = val_fraction
        self._files, self.remarks = text_files("data.path", path)
        self._held_out: list[TextFile] | None = None
        if val_path is not None:
            self._held_out, more = text_files("data.val_path", val_path)
            self.remarks += more
            self._files, left_out = without(self._files, self._held_out)
            if not self._files:
                raise UserError(
                    f"data.val_path={val_path}: contains all of data.path={path}, so nothing is left to "
                    "train on; name other text"
                )
            if left_out:
                names = listed([file.path for file in left_out])
                self.remarks.append(
                    f"data.val_path={val_path}: is also in data.path; left out of training: {names}"
                )

    @cached_property
    def _splits(self) -> dict[str, list[TextFile]]:
        """Files of each split; computed when first needed, because the cut reads the files."""
        if self._held_out is not None:
            return {"train": self._files, "val": self._held_out}
        train, val = hold_out(self._files, self._fraction)
        return {"train": train, "val": val}

    def fingerprint(self) -> str:
        files = [*self._files, *(self._held_out or ())]
        hashed = sum(file.path.stat().st_size for file in files) <= HASHED_BYTES
        how = self._fraction if self._held_out is None else len(self._held_out)
        parts = [f"{how}", *(file.stamp(hashed) for file in files)]
        return "text-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def blocks(self, split: str) -> Iterator[Block]:
        for file in self._splits[split]:
            yield from file.blocks()

    def size(self) -> int:
        return sum(file.size for split in SPLITS for file in self._splits[split])


class FineWeb(ShardCorpus):
    """Shards of the parameter-golf challenge, read from a folder or downloaded.

    Args:
        folder: name of the published folder, for example fineweb10B_sp1024.
        tokenizer_file: name of the published tokenizer, None for byte models.
        train_shards: number of training shards to use, 100 million tokens each.
        path: folder that already holds fineweb_train_*.bin and fineweb_val_*.bin; None to download them.
        special_ids: ids below this are dropped and the others lowered by it (byte260 to bytes256).
        repo_id, revision: the dataset on the Hugging Face hub.
    """

    @checked
    def __init__(
        self,
        *,
        folder: str,
        tokenizer_file: str | None,
        train_shards: Count,
        path: str | None,
        special_ids: Whole,
        repo_id: str,
        revision: str,
    ) -> None:
        if path is not None and not path.strip():
            raise UserError(
                "data.path: is empty; name a folder with shards, or null to download them"
            )
        self.remedy = f"more shards than data.corpus.train_shards={train_shards}"
        if tokenizer_file is not None:
            places = "beside the shards or in a tokenizers folder above them"
            self.no_tokenizer = f"data.path={path}: no {tokenizer_file} {places}"
        self.special_ids = special_ids
        self.folder, self.tokenizer_file, self.train_shards = folder, tokenizer_file, train_shards
        self.path, self.repo_id, self.revision = path, repo_id, revision

    def shards(self, cache_dir: Path, most_train: int | None = None) -> Shards:
        if self.path is not None:
            found = self._on_disk(Path(os.path.expanduser(self.path)))
        else:
            found = self._downloaded(cache_dir / "fineweb", most_train)
        if not self.special_ids:
            return found
        folder = cache_dir / f"without_ids_below_{self.special_ids}"
        train, val = (
            [without_special_ids(path, self.special_ids, folder) for path in paths]
            for paths in (found.train, found.val)
        )
        return Shards(train, val, found.tokenizer)

    def _downloaded(self, destination: Path, most_train: int | None) -> Shards:
        from jepa_lm.data.download import download_shards

        return download_shards(
            folder=self.folder,
            destination=destination,
            train_shards=min(self.train_shards, most_train or self.train_shards),
            tokenizer_file=self.tokenizer_file,
            repo_id=self.repo_id,
            revision=self.revision,
        )

    def _on_disk(self, folder: Path) -> Shards:
        found = {split: sorted(folder.glob(f"fineweb_{split}_*.bin")) for split in SPLITS}
        for split, files in found.items():
            if not files:
                raise UserError(f"data.path={folder}: no fineweb_{split}_*.bin in it")
        if len(found["train"]) < self.train_shards:
            raise UserError(
                f"data.corpus.train_shards={self.train_shards}: data.path={folder} holds "
                f"{len(found['train'])}; choose at most that many"
            )
        train = found["train"][: self.train_shards]
        return Shards(train, found["val"], self._tokenizer_near(folder))

    def _tokenizer_near(self, folder: Path) -> Path | None:
        """Return the published tokenizer if it is beside the shards or in a `tokenizers` folder above."""
        if self.tokenizer_file is None:
            return None
        places = [folder, *(p / "tokenizers" for p in (folder, *folder.resolve().parents[:2]))]
        for place in places:
            if (place / self.tokenizer_file).is_file():
                return place / self.tokenizer_file
        return None
