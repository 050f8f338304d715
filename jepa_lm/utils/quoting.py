"""Text of users, files and models, shown as it was written: nothing in it is taken for markup or a command.

literal is for a terminal, markdown for a paragraph or cell, override and shell for words to be pasted.
HTML is escaped by its template; tables and panels are of `jepa_lm.utils.console`.
"""

from __future__ import annotations

import logging
import re
import shlex
import unicodedata
from collections.abc import Iterable

UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that act on a terminal or on the text around them: escapes, directions, line ends."""
JOINERS = "\u200c\u200d"
"""Of those, what Persian, Hindi and emoji are written with."""
BARE = re.compile(r"[A-Za-z0-9_/.+@%-]+")
"""Values that Hydra takes for text, or for the number that they are, without quotes."""


def literal(text: str, *, keep: str = "") -> str:
    """The same with what cannot be seen as an escape: `\\x1b`, `\\n`, `\\u202e`.

    Args:
        keep: characters that stay, such as line ends.
    """
    if text.isprintable():
        return text
    kept = JOINERS + keep
    return "".join(
        c
        if c in kept or (unicodedata.category(c) not in UNSEEN and ord(c) & 0xFFFE != 0xFFFE)
        else c.encode("unicode_escape").decode()
        for c in text
    )


def markdown(text: str) -> str:
    """Text that stays text in a paragraph, a list or a cell of Markdown."""
    text = literal(text).strip()
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;")):
        text = text.replace(sign, safe)
    text = re.sub(r"([\\`*|~])", r"\\\1", text).replace("](", "]\\(")
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    text = re.sub(r"^([#+=[-])", r"\\\1", text)
    return re.sub(r"^([0-9]+)([.)])(?=\s|$)", r"\1\\\2", text)


def override(key: str, value: object) -> str:
    """A word of the command line that gives this text to a setting, for a shell."""
    text = str(value)
    return shell([f"{key}={text if BARE.fullmatch(text) else quoted(text)}"])


def quoted(text: str) -> str:
    """A value of an override that is this text, whatever is in it."""
    from hydra.core.override_parser.types import Quote, QuotedString

    # References would be resolved; a backslash before them says that they are text.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return QuotedString(text, Quote.double).with_quotes()


def shell(words: Iterable[str]) -> str:
    """A line to paste into a shell."""
    return " ".join(map(_word, words))


def _word(text: str) -> str:
    if literal(text) == text:
        return shlex.quote(text)
    told = text.replace("\\", "\\\\").replace("'", "\\'")
    # A byte of a file name that is no text.
    told = re.sub(r"[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", told)
    # Of shells, `\\x9b` is a byte and `\\u009b` a character.
    told = re.sub(
        r"[\x80-\xff]", lambda c: c[0] if c[0].isprintable() else f"\\u{ord(c[0]):04x}", told
    )
    return f"$'{literal(told)}'"


class Formatter(logging.Formatter):
    """Of what Hydra and libraries log: they repeat the user's words."""

    def format(self, record: logging.LogRecord) -> str:
        """Lines stay apart."""
        return literal(super().format(record), keep="\n\t")
