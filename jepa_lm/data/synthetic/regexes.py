r"""Descriptions of lines of text and their regular expressions, after the grammar of NL-RX (1608.03000).

    lines containing words with a vowel, 2 or more times, followed by the string 'dog'
    .*(\b(([AEIOUaeiou]{2,}).*(dog))\b).*

As there, an expression is drawn from a grammar and described by the same derivation. The rules and words are
our own, and fewer; each description has one reading, so that a model can be right about all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated

import numpy as np

from jepa_lm.data.corpora import SPLITS
from jepa_lm.data.pairs import Conversation, PairSource, Turn
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, Range, Seed, checked

Said = tuple[str, str]
"""A description and its expression."""
CHARACTERS: tuple[Said, ...] = (
    ("a vowel", "[AEIOUaeiou]"),
    ("a number", "[0-9]"),
    ("a letter", "[A-Za-z]"),
    ("a capital letter", "[A-Z]"),
    ("a lower-case letter", "[a-z]"),
    ("a character", "."),
)
WORDS = ("dog", "truck", "ring", "lake", "stone", "door")
MOST_TIMES = 7
CLAUSES: tuple[Said, ...] = (
    ("containing", ".*({}).*"),
    ("starting with", "({}).*"),
    ("ending with", ".*({})"),
    ("with nothing but", "{}"),
    ("not containing", "~(.*({}).*)"),
)
JOINS: tuple[Said, ...] = (
    (" and ", "({})&({})"),
    (" or ", "({})|({})"),
    (" followed by ", "({}).*({})"),
    (" before ", "({}).*({}).*"),
)
MOST_DRAWS = 50
"""Draws for each distinct pair; more mean that the grammar has hardly any left."""


class RegexPairs(PairSource):
    """Distinct pairs from the grammar, divided once between training and validation.

    Args:
        train_pairs, val_pairs: how many. seed: of the draws.
        longest: most inputs that a pair may take, its two marks included.
    """

    @checked
    def __init__(
        self,
        *,
        train_pairs: Annotated[int, Range(least=1, most=1_000_000)],
        val_pairs: Annotated[int, Range(least=1, most=1_000_000)],
        longest: Count,
        seed: Seed,
    ) -> None:
        self.asked, self.longest, self.seed = (train_pairs, val_pairs), longest, seed

    def fingerprint(self) -> str:
        return json.dumps(["regexes", 1, self.asked, self.longest, self.seed])

    def conversations(self, split: str) -> Iterator[Conversation]:
        train, val = self.asked
        part = slice(0, train) if split == SPLITS[0] else slice(train, train + val)
        for question, answer in distinct(train + val, self.longest, self.seed)[part]:
            yield [Turn(False, question.encode()), Turn(True, answer.encode())]


@lru_cache(maxsize=1)  # both splits are parts of it
def distinct(count: int, longest: int, seed: int) -> tuple[Said, ...]:
    """Return that many pairs with different descriptions, of at most `longest` inputs each.

    Raises:
        UserError: the grammar has too few.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, str] = {}
    for _ in range(MOST_DRAWS * count):
        if len(found) == count:
            return tuple(found.items())
        question, answer = described(rng)
        if len(question) + len(answer) + 2 <= longest:
            found[question] = answer
    raise UserError(
        f"data.corpus.source: the grammar has hardly more than {len(found)} pairs of at most {longest} "
        f"tokens; ask for fewer than {count}, or raise data.seq_len"
    )


def described(rng: np.random.Generator) -> Said:
    """Draw a description and its expression."""
    said, form = _one(rng, CLAUSES)
    inner, expression = _joined(rng)
    if rng.random() < 0.3:
        inner, expression = f"words with {inner}", rf"\b({expression})\b"
    return f"lines {said} {inner.removesuffix(',')}", form.format(expression)


def _joined(rng: np.random.Generator) -> Said:
    """Draw one to three things, and how they are joined."""
    kind = rng.random()
    if kind < 0.25:
        return _item(rng)
    if kind < 0.8:
        word, form = _one(rng, JOINS)
        (first, one), (second, other) = _item(rng), _item(rng)
        return first + word + second, form.format(one, other)
    word, sign = _one(rng, (("and", "&"), ("or", "|")))
    things = [_thing(rng) for _ in range(3)]
    said = f"{things[0][0]}, {things[1][0]}, {word} {things[2][0]}"
    return said, sign.join(f"({expression})" for _, expression in things)


def _item(rng: np.random.Generator) -> Said:
    """Draw a thing, perhaps repeated or excluded."""
    said, form = _thing(rng)
    kind, times = rng.random(), int(rng.integers(2, MOST_TIMES + 1))
    if kind < 0.5:
        return said, form
    whole = f"({form})" if len(form) > 1 and form[0] != "[" else form
    if kind < 0.65:
        return f"{said}, {times} or more times,", f"{whole}{{{times},}}"
    if kind < 0.75:
        return f"{said}, at most {times} times,", f"{whole}{{1,{times}}}"
    if kind < 0.85:
        return f"{said}, at least once,", f"{whole}+"
    if kind < 0.9:
        return f"{said}, zero or more times,", f"{whole}*"
    return f"anything but {said}", f"~({form})"


def _thing(rng: np.random.Generator) -> Said:
    if rng.random() < 0.7:
        return _one(rng, CHARACTERS)
    word = WORDS[rng.integers(len(WORDS))]
    return f"the string '{word}'", word


def _one(rng: np.random.Generator, of: tuple[Said, ...]) -> Said:
    return of[rng.integers(len(of))]
