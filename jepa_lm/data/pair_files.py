"""Pairs from a user's .jsonl file: two fields of text, or `messages` of the roles user and assistant."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from jepa_lm.data.corpora import InnerShare
from jepa_lm.data.pairs import Conversation, PairSource, Turn
from jepa_lm.data.text_files import TextFile, encoded, text_fields
from jepa_lm.data.text_formats import check_format
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, checked

ROLES = {"user": False, "assistant": True, "system": False}
"""Roles of messages, and whether the model is to write them."""
MOST_MESSAGES = 1000
FIELDS = "data.corpus.source.question and data.corpus.source.answer"


class PairFiles(PairSource):
    """Pairs of a file with one JSON object on each line.

    Args:
        path: the file, which may be compressed. val_path: one to validate on; None for the end of `path`.
        val_fraction: share of the pairs that are then held out.
        question, answer: names of two fields of text; None for the field `messages`, a list of objects with
            `role` and `content`.
        system: keep messages of the role system, which are else left out.
        train_pairs: use only the first n pairs to train on; None for all.

    Raises:
        UserError: no such file, or one that is no text; only one of two fields is named.
    """

    reads_files = True

    @checked
    def __init__(
        self,
        *,
        path: str | None,
        val_path: str | None,
        val_fraction: InnerShare,
        question: str | None,
        answer: str | None,
        system: bool,
        train_pairs: Count | None,
    ) -> None:
        if path is None:
            raise UserError("data.path is not set; data=pairs reads a .jsonl file from it")
        if (question is None) != (answer is None):
            raise UserError(f"{FIELDS}: name both fields, or none to read the field messages")
        self._files = {"train": _opened("data.path", path)}
        if val_path is not None:
            self._files["val"] = _opened("data.val_path", val_path)
        self.val_fraction, self.train_pairs = val_fraction, train_pairs
        self.question, self.answer, self.system = question, answer, system

    def fingerprint(self) -> str:
        how: list[object] = [self.question, self.answer, self.system, self.train_pairs]
        how += [file.stamp(hashed=True) for file in self._files.values()]
        how += [] if "val" in self._files else [self.val_fraction]
        return hashlib.sha256(json.dumps(how).encode()).hexdigest()

    def conversations(self, split: str) -> Iterator[Conversation]:
        if "val" in self._files:
            found = self._files[split].lines(self._read)
        else:
            part = (0, self._kept) if split == "train" else (self._kept, None)
            found = islice(self._files["train"].lines(self._read), *part)
        yield from islice(found, self.train_pairs if split == "train" else None)

    @cached_property
    def _kept(self) -> int:
        """Number of pairs to train on, if the end of their file is held out."""
        file = self._files["train"]
        pairs = sum(1 for _ in file.lines(self._read))
        kept = pairs - max(1, round(self.val_fraction * pairs))
        if kept < 1:
            raise UserError(
                f"data.path={file.path}: holds {pairs} pairs, too few to hold out some for validation"
            )
        return kept

    def _read(self, line: bytes) -> Conversation:
        """Return the pair of a line.

        Raises:
            ValueError: the line is damaged; the message says how.
        """
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                'is not a JSON object; each line must be one, such as {"messages": [...]}'
            ) from error
        if not isinstance(found, dict):
            raise ValueError(f"is a {type(found).__name__}, expected a JSON object")
        if self.question is not None:
            asked, answered = (_text_of(found, key) for key in (self.question, self.answer))
            turns = [Turn(False, asked), Turn(True, answered)]
        else:
            turns = self._messages(found)
        if len(turns) < 2 or turns[0].answers or not turns[-1].answers:
            raise ValueError("does not begin with a question and end with an answer")
        if not all(turn.text for turn in turns):
            raise ValueError("has an empty text")
        return turns

    def _messages(self, found: dict[str, Any]) -> list[Turn]:
        messages = found.get("messages")
        if not isinstance(messages, list):
            fields = ", ".join(text_fields(found)[:6])
            there = f"its fields of text are {fields}; name two with {FIELDS}" if fields else ""
            raise ValueError(f'has no list "messages"; {there or "nor fields of text"}')
        if len(messages) > MOST_MESSAGES:
            raise ValueError(f"has {len(messages)} messages, at most {MOST_MESSAGES} are read")
        turns = []
        for message in messages:
            role = message.get("role") if isinstance(message, dict) else None
            if not isinstance(role, str) or role not in ROLES:
                raise ValueError(
                    f"has a message of the role {str(role)[:40]!r}; expected {', '.join(ROLES)}"
                )
            if role != "system" or self.system:
                turns.append(Turn(ROLES[role], _text_of(message, "content")))
        return turns


def _text_of(node: dict[str, Any], key: str | None) -> bytes:
    """Return a field of text.

    Raises:
        ValueError: there is no such field, or it holds no text.
    """
    assert key is not None
    if not isinstance(node.get(key), str):
        has = ", ".join(text_fields(node)[:6]) or "none"
        raise ValueError(f"has no text {key!r}; its fields of text are: {has}")
    return encoded(node[key])


def _opened(key: str, path: str) -> TextFile:
    """Return the file, which must be there and hold text."""
    file = TextFile(key, Path(os.path.expanduser(path)), json=True)
    if not path.strip() or not file.path.is_file():
        raise UserError(
            f"{key}={path}: no such file; expected a .jsonl file with a pair on each line"
        )
    head = file.head()
    check_format(key, file.path, head)
    if not head.strip():
        raise UserError(f"{key}={path}: the file is empty or blank; expected a pair on each line")
    return file
