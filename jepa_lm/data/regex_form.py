r"""Normal form of a regular expression, so that two spellings of the same one are equal.

An expression is parsed and rewritten, never run: what a model writes may take for ever to match.

    union  a|b   lowest      any character  .       repeat  a* a+ a? a{2} a{2,} a{2,5}
    both   a&b               one of         [a-z]   group   (a)
    not    ~a    highest     not one of     [^a-z]  word boundary  \b

Rewritten by laws that hold for every language: groups vanish; unions and intersections are flat, sorted and
without repetitions, and those of characters are one set of characters; repeats of repeats and double
negations are made one. Equal forms mean equal languages. Different forms may mean equal languages, too.
Source of the dialect: NL-RX (1608.03000).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

MOST_CHARACTERS, MOST_DEPTH = 2000, 60
LAST = 0x10FFFF
Form: TypeAlias = tuple[Any, ...]
"""`set` of ranges; `mark` of a letter; `not`; `repeat` of least, most, form; `cat`, `|` and `&` of forms."""
REPEAT = re.compile(r"\{(\d{1,9})(,?)(\d{0,9})\}")
CLASSES = {"d": "0-9", "w": "A-Za-z0-9_", "s": " \t-\r"}


def same_regex(one: str, other: str) -> bool:
    """Return whether two expressions have the same normal form; false if one cannot be parsed."""
    form = normal_form(one)
    return form is not None and form == normal_form(other)


def normal_form(expression: str) -> Form | None:
    """Return the normal form, None for what is no expression of this dialect, too long or too deep."""
    if len(expression) > MOST_CHARACTERS:
        return None
    try:
        return _Parser(expression).whole()
    except _NoRegexError:
        return None


class _NoRegexError(Exception):
    """The text is no regular expression."""


class _Parser:
    """Recursive descent, one method for each level of precedence."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def whole(self) -> Form:
        form = self.union()
        if self.at < len(self.text):
            raise _NoRegexError
        return form

    def next(self) -> str:
        """Return the next character, an empty text at the end."""
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        if not (character := self.next()):
            raise _NoRegexError
        self.at += 1
        return character

    def union(self) -> Form:
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise _NoRegexError
        form = self._separated("|", self.both)
        self.depth -= 1
        return form

    def both(self) -> Form:
        return self._separated("&", self.concatenation)

    def _separated(self, sign: str, part: Callable[[], Form]) -> Form:
        parts = [part()]
        while self.next() == sign:
            self.at += 1
            parts.append(part())
        return _joined(sign, parts)

    def concatenation(self) -> Form:
        parts: list[Form] = []
        while self.next() and self.next() not in "|&)":
            part = self.repeated()
            parts += part[1:] if part[0] == "cat" else [part]
        return parts[0] if len(parts) == 1 else ("cat", *parts)

    def repeated(self) -> Form:
        form = self.negated()
        while self.next() and self.next() in "*+?{":
            form = _repeat(form, *self._bounds())
        return form

    def _bounds(self) -> tuple[int, int | None]:
        if self.next() == "{":
            found = REPEAT.match(self.text, self.at)
            if found is None:
                raise _NoRegexError
            self.at = found.end()
            least = int(found[1])
            most = (int(found[3]) if found[3] else None) if found[2] else least
            if (found[3] and not found[2]) or (most is not None and most < least):
                raise _NoRegexError
            return least, most
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[self.take()]

    def negated(self) -> Form:
        negations = 0
        while self.next() == "~":
            negations, self.at = negations + 1, self.at + 1
        form = self.atom()
        if negations % 2 == 0:
            return form
        return form[1] if form[0] == "not" else ("not", form)

    def atom(self) -> Form:
        character = self.take()
        if character == "(":
            form = self.union()
            if self.take() != ")":
                raise _NoRegexError
            return form
        if character == "[":
            return self._set()
        if character == ".":
            return ("set", (0, LAST))
        if character == "\\":
            letter = self.take()
            if letter in CLASSES:
                return _Parser(CLASSES[letter] + "]")._set()
            return ("mark", letter) if letter.isalnum() else _character(letter)
        if character in "*+?{})]|&":
            raise _NoRegexError
        return _character(character)

    def _set(self) -> Form:
        """Read a set of characters after its bracket."""
        inverted = self.next() == "^"
        self.at += inverted
        ranges: list[tuple[int, int]] = []
        while (first := self.take()) != "]":
            first = self.take() if first == "\\" else first
            last = first
            if self.next() == "-" and self.text[self.at + 1 : self.at + 2] not in ("", "]"):
                self.at += 1
                last = self.take()
            if last < first:
                raise _NoRegexError
            ranges.append((ord(first), ord(last)))
        merged = _merged(ranges)
        return ("set", *(_complement(merged) if inverted else merged))


def _character(character: str) -> Form:
    return ("set", (ord(character), ord(character)))


def _repeat(form: Form, least: int, most: int | None) -> Form:
    if (least, most) == (1, 1):
        return form
    if form[0] == "repeat" and most is None and least <= 1 and form[2] is None and form[1] <= 1:
        return ("repeat", min(least, form[1]), None, form[3])
    return ("repeat", least, most, form)


def _joined(sign: str, parts: list[Form]) -> Form:
    """Return a union or an intersection in normal form."""
    flat = [inner for part in parts for inner in (part[1:] if part[0] == sign else [part])]
    sets = [form[1:] for form in flat if form[0] == "set"]
    others = sorted({form for form in flat if form[0] != "set"}, key=repr)
    if sets:
        joined = sets[0]
        for ranges in sets[1:]:
            joined = _merged([*joined, *ranges]) if sign == "|" else _common(joined, ranges)
        others = [("set", *joined), *others]
    return others[0] if len(others) == 1 else (sign, *others)


def _merged(ranges: Any) -> tuple[tuple[int, int], ...]:
    """Return the same characters as ranges in order, apart from each other."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return tuple(found)


def _complement(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    starts = [0, *(last + 1 for _, last in ranges)]
    stops = [*(first - 1 for first, _ in ranges), LAST]
    return tuple((a, b) for a, b in zip(starts, stops, strict=True) if a <= b)


def _common(
    one: tuple[tuple[int, int], ...], other: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    pairs = ((max(a, c), min(b, d)) for a, b in one for c, d in other)
    return _merged((first, last) for first, last in pairs if first <= last)
