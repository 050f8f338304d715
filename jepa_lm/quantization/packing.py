"""Signed integers of 2 to 8 bits as a dense stream of bits, most significant bit first.

A value v in [-2^(b-1), 2^(b-1) - 1] is stored as v + 2^(b-1), and the stream is that of `np.packbits` over
the low b bits of each value. Four and six bits have fast paths: several values are moved together inside
one word, in blocks that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BLOCK = 1 << 16
"""Values packed at a time; a multiple of 16."""


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """values int8 [n], each in range -> uint8 [ceil(n bits / 8)], bit for bit as `pack_reference`."""
    fast = FAST.get(bits)
    if fast is None:
        return pack_reference(values, bits)
    whole = len(values) - len(values) % 16  # 16 values fill whole words of both paths
    values = np.ascontiguousarray(values)
    parts = [fast(values[i : min(i + BLOCK, whole)]) for i in range(0, whole, BLOCK)]
    return np.concatenate([*parts, pack_reference(values[whole:], bits)])


def unpack(packed: np.ndarray, bits: int, values: int) -> np.ndarray:
    """uint8 -> int8 [values]. Bits past the last value are not looked at."""
    stream = np.unpackbits(packed)[: values * bits].reshape(values, bits)
    padded = np.pad(stream, ((0, 0), (8 - bits, 0)))
    return (np.packbits(padded, axis=1)[:, 0].astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def packed_bytes(values: int, bits: int) -> int:
    """Bytes that so many values take."""
    return -(-values * bits // 8)


def pack_reference(values: np.ndarray, bits: int) -> np.ndarray:
    """The plain path."""
    unsigned = (values.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    return np.packbits(np.unpackbits(unsigned[:, None], axis=1)[:, 8 - bits :])


def _pack_int4(values: np.ndarray) -> np.ndarray:
    """Two values a byte. Adding 8 to a value of four bits flips its highest one."""
    pairs = values.view("<u2")
    packed = (pairs << 4) & 0xF0
    packed |= (pairs >> 8) & 0x0F
    packed ^= 0x88
    return packed.astype(np.uint8)


def _pack_int6(values: np.ndarray) -> np.ndarray:
    """Four values in 24 bits, and four of those in three words."""
    four = values.view("<u4")
    bits24 = (four & 0x3F) << 18
    bits24 |= (four << 4) & 0x3F000
    bits24 |= (four >> 10) & 0xFC0
    bits24 |= (four >> 24) & 0x3F
    bits24 ^= 0x820820  # the highest bit of each value, as above
    a, b, c, d = bits24.reshape(-1, 4).T
    words = np.empty((len(a), 3), dtype="<u4")
    words[:, 0] = (a << 8) | (b >> 16)
    words[:, 1] = (b << 16) | (c >> 8)
    words[:, 2] = (c << 24) | d
    return words.byteswap().view(np.uint8).reshape(-1)


FAST: dict[int, Callable[[np.ndarray], np.ndarray]] = {4: _pack_int4, 6: _pack_int6}


def entropy(symbols: np.ndarray) -> float:
    """Bits of each uint8 symbol by their frequencies alone."""
    counts = np.bincount(symbols, minlength=256)
    share = counts[counts > 0] / max(1, len(symbols))
    return float(-(share * np.log2(share)).sum())
