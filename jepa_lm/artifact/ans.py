"""Order-0 asymmetric numeral systems (ANS): code bytes close to their entropy, with local frequency tables.

The integers of trained weights are nearly independent, so a codec can exploit only their frequencies. A
whole number of bits per symbol (the Huffman codes of brotli, zstd and zlib) loses 0.5 to 0.8 %. With state
x, frequency f of a symbol out of 2^16, and c the sum of the frequencies of the symbols before it,

    push: x' = 2^16 (x div f) + x mod f + c          pop: f (x' div 2^16) + x' mod 2^16 - c

Source: Duda, "Asymmetric numeral systems" (2013); states are interleaved, each codes every N-th byte.
Neighbouring units of bytes with similar frequencies share a table; repetitive units, such as a header, are
left to zlib.
Legend: N states, U bytes of a unit.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

UNIT = 1 << 12
PRECISION = 16
TOTAL = 1 << PRECISION
LEAST = 1 << 31
"""States lie in [2^31, 2^63): below it 32 bits are read, above it 32 bits are written."""
MOST_STATES = 1 << 8
BYTES_A_STATE = 1 << 11
TABLE_BYTES = 120
"""Approximate size of a table; units share one where that is cheaper."""
HEAD = struct.Struct("<QHIII")
"""Total bytes, states, blocks, and bytes of the compressed description and of the zlib data."""
BLOCK = np.dtype([("units", "<u4"), ("coded", "u1")])
WIDE = np.uint64


class AnsError(ValueError):
    """The stream is not an ANS stream, or is damaged."""


class _Table(NamedTuple):
    """Frequencies of the 256 symbols, and for each the sum of the frequencies before it."""

    frequency: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, frequency: np.ndarray) -> _Table:
        return cls(frequency.astype(WIDE), (np.cumsum(frequency) - frequency).astype(WIDE))


def compress(raw: bytes) -> bytes:
    """Compress `raw` as one stream."""
    states = 1
    while states < MOST_STATES and 2 * states * BYTES_A_STATE <= max(UNIT, len(raw)):
        states *= 2
    padded = np.frombuffer(raw + bytes(-len(raw) % UNIT), dtype=np.uint8).reshape(-1, UNIT)
    blocks, tables, repeated, coded = [], [], [], []
    for first, last, counts in _blocks(padded):
        units = padded[first:last]
        blocks.append((last - first, counts is not None))
        if counts is None:
            repeated.append(units.tobytes())
        else:
            tables.append(_frequencies(counts))
            coded.append((units.reshape(-1, states), _Table.of(tables[-1])))
    about = np.array(blocks, dtype=BLOCK).tobytes() + b"".join(map(_write_table, tables))
    description, rest = zlib.compress(about, 9), zlib.compress(b"".join(repeated), 9)
    x, words = _push(coded, states)
    head = HEAD.pack(len(raw), states, len(blocks), len(description), len(rest))
    return head + description + rest + x.tobytes() + words.tobytes()


def promised(packed: bytes) -> int:
    """Return the number of bytes that `decompress` would return, according to the header.

    Raises:
        AnsError: the header is missing.
    """
    if len(packed) < HEAD.size:
        raise AnsError("truncated")
    return int(HEAD.unpack_from(packed)[0])


def decompress(packed: bytes) -> bytes:
    """Undo `compress`, using at most a small multiple of `promised` bytes of memory.

    Raises:
        AnsError: the stream is malformed.
    """
    promised(packed)
    size, states, blocks, *lengths = HEAD.unpack_from(packed)
    units = -(-size // UNIT)
    known = 1 <= states <= MOST_STATES and UNIT % states == 0 and blocks <= units
    if not known or HEAD.size + sum(lengths) + 8 * states > len(packed):
        raise AnsError("its header is inconsistent")
    at = HEAD.size
    about = _unzip(packed[at : at + lengths[0]], blocks * (BLOCK.itemsize + 32 + 512))
    rest = _unzip(packed[at + lengths[0] : at + sum(lengths)], units * UNIT)
    if len(about) < blocks * BLOCK.itemsize:
        raise AnsError("truncated")
    table = np.frombuffer(about, dtype=BLOCK, count=blocks)
    taken = int(table["units"][table["coded"] == 0].sum(dtype=np.uint64)) * UNIT
    if int(table["units"].sum(dtype=np.uint64)) != units or taken != len(rest):
        raise AnsError("its blocks do not match its size")
    tables = _read_tables(about[blocks * BLOCK.itemsize :], int((table["coded"] != 0).sum()))
    at += sum(lengths)
    x = np.frombuffer(packed, dtype="<u8", count=states, offset=at).astype(WIDE)
    words = np.frombuffer(packed[at + 8 * states :][: (len(packed) - at) // 4 * 4], dtype=np.uint8)
    popped = _pop(x, words, [int(n) for n in table["units"][table["coded"] != 0]], tables)
    out = np.empty(units * UNIT, dtype=np.uint8)
    start, zipped = 0, np.frombuffer(rest, dtype=np.uint8)
    for count, is_coded in zip(table["units"].tolist(), table["coded"].tolist(), strict=True):
        end = start + count * UNIT
        if is_coded:
            out[start:end] = next(popped)
        else:
            out[start:end], zipped = zipped[: end - start], zipped[end - start :]
        start = end
    if next(popped, None) is not None:
        raise AnsError("holds data beyond its blocks")
    return out[:size].tobytes()


def _push(coded: list[tuple[np.ndarray, _Table]], states: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the final states [N] and the 32-bit words in the order in which decoding reads them."""
    x, given = np.full(states, LEAST, dtype=WIDE), []
    for rows, table in reversed(coded):
        for symbols in rows[::-1]:
            f = table.frequency[symbols]
            full = x >= f << WIDE(63 - PRECISION)
            given.append(x[full].astype("<u4"))
            x = np.where(full, x >> WIDE(32), x)
            quotient = x // f
            x = (quotient << WIDE(PRECISION)) + (x - quotient * f) + table.start[symbols]
    return x, np.concatenate([*given[::-1], np.empty(0, dtype="<u4")])


def _pop(
    x: np.ndarray, raw: np.ndarray, units: list[int], tables: list[_Table]
) -> Iterator[np.ndarray]:
    """Yield the bytes of each block.

    Raises:
        AnsError: the words do not lead back to the initial state of every stream.
    """
    if len(raw) % 4:
        raise AnsError("truncated")
    words, at, N = raw.view("<u4").astype(WIDE), 0, len(x)
    low = WIDE(TOTAL - 1)
    for count, table in zip(units, tables, strict=True):
        symbol_of = np.repeat(np.arange(256, dtype=np.uint8), table.frequency.astype(np.int64))
        out = np.empty((count * UNIT // N, N), dtype=np.uint8)
        for row in out:
            slot = x & low
            symbols = symbol_of[slot]
            row[:] = symbols
            x = table.frequency[symbols] * (x >> WIDE(PRECISION)) + slot - table.start[symbols]
            empty = np.flatnonzero(x < WIDE(LEAST))
            if at + len(empty) > len(words):
                raise AnsError("truncated")
            x[empty] = (x[empty] << WIDE(32)) | words[at : at + len(empty)]
            at += len(empty)
        yield out.reshape(-1)
    if at != len(words) or (x != WIDE(LEAST)).any():
        raise AnsError("its words do not match its tables")


def _blocks(units: np.ndarray) -> Iterator[tuple[int, int, np.ndarray | None]]:
    """Yield the first unit and the end of each block, and its counts [256]; None where zlib is smaller."""
    found: list[tuple[int, int, np.ndarray | None]] = []
    for i, unit in enumerate(units):
        counts: np.ndarray | None = np.bincount(unit, minlength=256)
        assert counts is not None
        if len(zlib.compress(unit.tobytes(), 1)) < 0.95 * _bytes(counts):
            counts = None
        if found:
            first, _, before = found[-1]
            if counts is None or before is None:
                together = counts is before
            else:
                apart = _bytes(before) + _bytes(counts) + TABLE_BYTES
                together = _bytes(before + counts) <= apart
            if together:
                found[-1] = (first, i + 1, None if counts is None else before + counts)
                continue
        found.append((i, i + 1, counts))
    yield from found


def _bytes(counts: np.ndarray) -> float:
    """Return the entropy of all counted symbols, in bytes."""
    seen = counts[counts > 0]
    return float((seen * np.log2(seen.sum() / seen)).sum()) / 8


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """Scale counts to a sum of 2^16, at least 1 for each symbol that occurs."""
    share = np.where(counts > 0, np.maximum(1, counts * TOTAL // counts.sum()), 0)
    share[np.argmax(share)] += TOTAL - share.sum()
    return share


def _write_table(frequency: np.ndarray) -> bytes:
    there = frequency > 0
    return np.packbits(there).tobytes() + (frequency[there] - 1).astype("<u2").tobytes()


def _read_tables(raw: bytes, count: int) -> list[_Table]:
    found, at = [], 0
    for _ in range(count):
        there = np.unpackbits(np.frombuffer(raw[at : at + 32], dtype=np.uint8)).astype(bool)
        end = at + 32 + 2 * int(there.sum())
        if len(there) != 256 or end > len(raw):
            raise AnsError("truncated")
        frequency = np.zeros(256, dtype=np.int64)
        frequency[there] = np.frombuffer(raw[at + 32 : end], dtype="<u2").astype(np.int64) + 1
        if frequency.sum() != TOTAL:
            raise AnsError("the frequencies of a table have the wrong sum")
        found.append(_Table.of(frequency))
        at = end
    if at != len(raw):
        raise AnsError("holds data beyond its tables")
    return found


def _unzip(packed: bytes, limit: int) -> bytes:
    unzip = zlib.decompressobj()
    found = unzip.decompress(packed, limit + 1)
    if len(found) > limit or not unzip.eof or unzip.unused_data:
        raise AnsError("its description is damaged")
    return found
