"""Rows made of pairs: a question and its answer, or a conversation, one pair to a row, padded to one length.

    <bos> question <turn> answer <eos> <pad> <pad>

Bytes with four special ids (byte260). Each message follows a mark, and the mark after an answer is a target
like its bytes: it is how a model says that it has ended. The two views of a row are its first question and
its answer, each with the mark before it; an objective encodes them as texts of their own.
Legend: R rows, T inputs of a row, n tokens of a row before padding.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jepa_lm.data.corpora import SPLITS
from jepa_lm.data.questions import Questions
from jepa_lm.data.regex_form import same_regex
from jepa_lm.data.rows import RowCorpus
from jepa_lm.data.synthetic.examples import MOST_NUMBERS, Examples, Length
from jepa_lm.data.tokenizers import ByteTokenizer, TokenizerSource
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Whole, checked

PAD, BOS, EOS, TURN, FIRST_BYTE = range(5)
"""Ids of byte260. The fourth stands for unknown tokens elsewhere, of which bytes have none."""
FORMAT = 2
"""Part of the cache key; raise it when pairs become other rows."""


class Turn(NamedTuple):
    """A message of a conversation."""

    answers: bool
    """Whether the model is to write it."""
    text: bytes


Conversation = Sequence[Turn]
"""It begins with a question and ends with an answer."""


class PairSource(ABC):
    """Where pairs come from."""

    reads_files = False

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a text that changes whenever the pairs do."""

    @abstractmethod
    def conversations(self, split: str) -> Iterator[Conversation]:
        """Yield the pairs of a split, in order."""


class PairRows(RowCorpus):
    """Pairs as rows. They are the `Questions` of these rows: a question is all before the first answer.

    Args:
        source: where they come from. length: T; a conversation of m messages with b bytes takes b + m inputs.
        too_long: what to do with a pair that does not fit: `refuse` the data, `leave_out` the pair, or `cut`
            the end of its question, never an answer; where that does not help, leave it out.
        loss_on: targets of the cross entropy: the `answers` with the mark after each, or the whole
            `conversation`, as published for LLM-JEPA. Scores are of answers in either case.
        same: also count answers that are the same expression in `jepa_lm.data.regex_form`; null: only equal
            texts. decode_rows: how many of the validation questions a validation has the model answer.
    """

    counted_by = "data.corpus.source.train_pairs"
    remedy = f"more pairs with {counted_by}"
    end: int | None = EOS

    @checked
    def __init__(
        self,
        *,
        source: PairSource,
        length: Length,
        too_long: Literal["refuse", "leave_out", "cut"],
        loss_on: Literal["answers", "conversation"],
        same: Literal["regex"] | None,
        decode_rows: Whole,
    ) -> None:
        self.source, self.length, self.too_long = source, length, too_long
        self.loss_on, self.same, self.decode_rows = loss_on, same, decode_rows
        self.reads_files, self.answer_length = source.reads_files, length
        self.rule_names: tuple[str, ...] = (
            "exact_match",
            "same_words",
            *(() if same is None else ("same_regex",)),
        )
        self.remarks: list[str] = []
        self._asked: set[bytes] = set()
        """Digests of the questions to train on, while rows are made."""

    def check(self, tokenizer: TokenizerSource, seq_len: int) -> None:
        if not isinstance(tokenizer, ByteTokenizer) or tokenizer.vocab_size != FIRST_BYTE + 256:
            raise UserError(
                "data.tokenizer: pairs are bytes with marks between them; use data/tokenizer=byte260"
            )
        if seq_len != self.length:
            raise UserError(
                f"data.seq_len={seq_len}: must equal data.corpus.length={self.length}; leave the latter at "
                "${data.seq_len}"
            )

    def _key(self) -> str:
        told = [FORMAT, self.length, self.too_long, self.loss_on, self.source.fingerprint()]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:20]

    @property
    def questions(self) -> Questions:
        return self

    def judge(
        self, rows: np.ndarray, starts: np.ndarray, answers: np.ndarray
    ) -> dict[str, np.ndarray]:
        """See `Questions.judge`."""
        wanted = [_written(row[start:]) for row, start in zip(rows, starts, strict=True)]
        given = [_written(answer) for answer in answers]
        both = list(zip(given, wanted, strict=True))
        found = {
            "exact_match": np.array([one == other for one, other in both]),
            "same_words": np.array([_words(one) == _words(other) for one, other in both]),
        }
        if self.same is not None:
            found["same_regex"] = np.array([_same_regex(one, other) for one, other in both])
        return found

    def examples(self, split: str) -> Examples:
        rows: list[Row] = []
        most = MOST_NUMBERS // (self.length + 1)
        fate = {"long": 0, "cut": 0, "left out": 0, "repeated": 0}
        for pair in self.source.conversations(split):
            fitted = fitting(pair, self.length)
            if fitted is not pair:
                fitted = fitted if self.too_long == "cut" else None
                fate["long"] += 1
                fate["left out" if fitted is None else "cut"] += 1
            if fitted is None:
                continue
            if len(rows) >= most:
                raise UserError(
                    f"data.path: more than {most} pairs of {self.length} tokens, which is what memory "
                    f"allows; set {self.counted_by}"
                )
            rows.append(row_of(fitted, self.length))
            fate["repeated"] += self._seen(fitted, split)
        self._judge_fate(split, len(rows), fate)
        tokens, scored, whole, views = (np.stack(parts) for parts in zip(*rows, strict=True))
        trained = whole if self.loss_on == "conversation" else None
        return Examples(tokens, None, None, scored, trained, views, whole)

    def _seen(self, pair: Conversation, split: str) -> bool:
        """Keep a question to train on; return whether one of validation is among those kept."""
        question = repr([turn.text for turn in pair[: first_answer(pair)]])
        digest = hashlib.blake2b(question.encode()).digest()
        if split == SPLITS[0]:
            self._asked.add(digest)
            return False
        return digest in self._asked

    def _judge_fate(self, split: str, rows: int, fate: dict[str, int]) -> None:
        """Tell what was cut and left out; refuse what leaves nothing, or what the user wants refused."""
        named = {"train": "training", "val": "validation"}[split]
        long, left_out = fate["long"], fate["left out"]
        told = f"{long} of the {rows + left_out} {named} pairs are longer than {self.length} tokens"
        if long and self.too_long == "refuse":
            raise UserError(
                f"data.corpus.too_long=refuse: {told} (data.seq_len); raise it, or choose leave_out "
                "or cut"
            )
        if not rows:
            raise UserError(f"data: the {named} split has no pair that fits; {told}")
        if long:
            self.remarks.append(
                f"data.seq_len={self.length}: {told}; {fate['cut']} questions cut, {left_out} pairs left out"
            )
        if fate["repeated"]:
            self.remarks.append(
                f"data: {fate['repeated']} of the {rows} validation questions are also in the training pairs"
            )


def _written(tokens: np.ndarray) -> bytes | None:
    """Return the text before the first mark, None if that is not one that ends a message."""
    marks = np.flatnonzero(tokens < FIRST_BYTE)
    if not len(marks) or tokens[marks[0]] not in (EOS, TURN):
        return None
    return (tokens[: marks[0]] - FIRST_BYTE).astype(np.uint8).tobytes()


def _words(text: bytes | None) -> list[bytes] | None:
    """Return what white space parts; None for what has no end."""
    return None if text is None else text.split()


def _same_regex(given: bytes | None, wanted: bytes | None) -> bool:
    if given is None or wanted is None:
        return False
    return given == wanted or same_regex(
        *(text.decode(errors="replace") for text in (given, wanted))
    )


class Row(NamedTuple):
    """A pair as tokens."""

    tokens: np.ndarray
    """[T + 1] uint16."""
    scored: np.ndarray
    """[T] bool: targets that belong to an answer, the mark after it included."""
    whole: np.ndarray
    """[T] bool: targets that are no padding."""
    views: np.ndarray
    """[4] int64: start and stop of a question and of its answer, the first, with the mark before each."""


def first_answer(pair: Conversation) -> int:
    """Return the place of the first answer among the messages."""
    return next(i for i, turn in enumerate(pair) if turn.answers)


def fitting(pair: Conversation, length: int) -> Conversation | None:
    """Return the pair itself if it fits into T inputs, or with its question cut; None if it cannot fit."""
    over = sum(len(turn.text) + 1 for turn in pair) - length
    if over <= 0:
        return pair
    asks = first_answer(pair) - 1
    text = pair[asks].text
    # Not within a character: what is left of one is dropped.
    kept = text[: max(0, len(text) - over)].decode(errors="ignore").encode()
    return [*pair[:asks], Turn(False, kept), *pair[asks + 1 :]] if kept else None


def row_of(pair: Conversation, length: int) -> Row:
    """Return the row of a pair that fits into T inputs."""
    tokens = np.full(length + 1, PAD, np.uint16)
    scored, whole = np.zeros(length, bool), np.zeros(length, bool)
    places = [0]
    for turn in pair:
        at = places[-1]
        stop = at + 1 + len(turn.text)
        tokens[at] = TURN if at else BOS
        tokens[at + 1 : stop] = np.frombuffer(turn.text, np.uint8).astype(np.uint16) + FIRST_BYTE
        scored[at:stop] = (
            turn.answers
        )  # target t is token t + 1, so the last one is the mark after it
        places.append(stop)
    tokens[places[-1]] = EOS
    whole[: places[-1]] = True
    asked, answered, after = places[first_answer(pair) - 1 :][:3]
    return Row(tokens, scored, whole, np.array([asked, answered, answered, after], np.int64))
