"""Quote text of users, files and models, so that nothing in it is treated as markup or a command.

`literal` is for terminals, `markdown` for paragraphs and cells, `override` and `shell` for words to paste.
HTML is escaped by its template; `jepa_lm.utils.console` makes tables and panels.
"""

from __future__ import annotations

import logging
import re
import shlex
import unicodedata
from collections.abc import Iterable

UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that affect a terminal or the surrounding text: escapes, directions, line ends."""
JOINERS = "\u200c\u200d"
"""Characters of those categories that Persian, Hindi and emoji need."""
BARE = re.compile(r"[A-Za-z0-9_/.+@%-]+")
"""Values that Hydra reads correctly without quotes, as text or as a number."""


def literal(text: str, *, keep: str = "") -> str:
    """Return the text with invisible characters as escapes: `\\x1b`, `\\n`, `\\u202e`.

    Args:
        keep: characters that are not escaped, such as line ends.
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


def cut(text: str, most: int) -> str:
    """Return at most this many characters of a text, and `...` in place of the rest."""
    return text if len(text) <= most else f"{text[:most]}..."


def one_line(value: object) -> str:
    """Return a text, or what an error says, on one line; an error that says nothing gives its type."""
    text = " ".join(str(value).split())
    return type(value).__name__ if not text and isinstance(value, BaseException) else text


def markdown(text: str) -> str:
    """Escape text for a paragraph, a list or a table cell of Markdown."""
    text = literal(text).strip()
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;")):
        text = text.replace(sign, safe)
    text = re.sub(r"([\\`*|~])", r"\\\1", text).replace("](", "]\\(")
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    text = re.sub(r"^([#+=[-])", r"\\\1", text)
    return re.sub(r"^([0-9]+)([.)])(?=\s|$)", r"\1\\\2", text)


def override(key: str, value: object) -> str:
    """Return `key=value`, quoted for a shell, as an override that sets this text."""
    return shell([f"{key}={value_of(str(value))}"])


def value_of(text: str) -> str:
    """Return any text as the value of a Hydra override, quoted if it has to be."""
    return text if BARE.fullmatch(text) else quoted(text)


def quoted(text: str) -> str:
    """Quote any text as the value of a Hydra override."""
    from hydra.core.override_parser.types import Quote, QuotedString

    # A backslash keeps Hydra from resolving references.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return QuotedString(text, Quote.double).with_quotes()


def shell(words: Iterable[str]) -> str:
    """Return the words as one line to paste into a shell."""
    return " ".join(map(_word, words))


def _word(text: str) -> str:
    if literal(text) == text:
        if "'" in text and not re.search(r"[$`!\\]", text):
            return '"' + text.replace('"', '\\"') + '"'
        return shlex.quote(text)
    told = text.replace("\\", "\\\\").replace("'", "\\'")
    # A byte of a file name that is not valid UTF-8.
    told = re.sub(r"[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", told)
    # In shells, `\\x9b` is a byte and `\\u009b` a character.
    told = re.sub(
        r"[\x80-\xff]", lambda c: c[0] if c[0].isprintable() else f"\\u{ord(c[0]):04x}", told
    )
    return f"$'{literal(told)}'"


class Formatter(logging.Formatter):
    """Log formatter for Hydra and other libraries, whose messages may repeat the user's text."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record and escape its text, keeping line ends."""
        return literal(super().format(record), keep="\n\t")
