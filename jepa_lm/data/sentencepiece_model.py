"""Read the settings in a SentencePiece model file that the library does not expose.

The file is a protocol buffer. The library's own classes for it work with only one version of protobuf, and
only four settings are needed, so they are read from the bytes. The library has parsed the file before, so it
is well formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TRAINER, NORMALIZER = 2, 3
BPE = 2
"""The model type; 1 is unigram, 3 words, 4 characters."""


@dataclass(frozen=True)
class ModelSettings:
    """How a model splits text.

    Args:
        bpe: it only merges neighbouring pairs.
        keeps_text: its only change to the text is to write each space as U+2581: it does not normalise, and
            neither adds nor removes spaces.
    """

    bpe: bool
    keeps_text: bool


def model_settings(model: bytes) -> ModelSettings:
    """Return the settings of a serialized model.

    Raises:
        ValueError: it is not a protocol buffer.
    """
    fields = list(_fields(model))
    trainer, normalizer = (dict(_fields(_part(fields, n))) for n in (TRAINER, NORMALIZER))
    changes = bool(normalizer.get(2))  # precompiled_charsmap
    added, removed, escaped = (bool(normalizer.get(field, 1)) for field in (3, 4, 5))
    return ModelSettings(
        bpe=trainer.get(3, 1) == BPE,
        keeps_text=escaped and not (changes or added or removed),
    )


def _part(fields: list[tuple[int, int | bytes]], number: int) -> bytes:
    """Return a nested message; if it occurs several times, the parts are joined."""
    return b"".join(value for n, value in fields if n == number and isinstance(value, bytes))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and value of each field; if a field is repeated, the last one counts."""
    at = 0
    try:
        while at < len(message):
            tag, at = _varint(message, at)
            number, kind = tag >> 3, tag & 7
            if kind == 0:
                value, at = _varint(message, at)
                yield number, value
            elif kind in (1, 2, 5):
                size = {1: 8, 5: 4}.get(kind)
                if size is None:
                    size, at = _varint(message, at)
                if at + size > len(message):
                    raise ValueError("a field runs past the end")
                yield number, message[at : at + size]
                at += size
            else:
                raise ValueError(f"a field of kind {kind}")
    except IndexError as error:
        raise ValueError("ends within a number") from error


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
