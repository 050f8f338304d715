"""Signed integers of 2 to 8 bits as a dense stream of bits, most significant bit first.

A value v in [-2^(b-1), 2^(b-1) - 1] is stored as v + 2^(b-1); the stream equals `np.packbits` over the low b
bits of each value. Four and six bits have fast paths that move several values at once within a word, in
blocks that fit the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BLOCK = 1 << 16
"""Number of values packed at a time; a multiple of 16."""


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack int8 [n] values in range into uint8 [ceil(n bits / 8)], bit-identical to `pack_reference`."""
    fast = FAST.get(bits)
    if fast is None:
        return pack_reference(values, bits)
    whole = len(values) - len(values) % 16  # 16 values fill whole words in both fast paths
    values = np.ascontiguousarray(values)
    parts = [fast(values[i : min(i + BLOCK, whole)]) for i in range(0, whole, BLOCK)]
    return np.concatenate([*parts, pack_reference(values[whole:], bits)])


def unpack(packed: np.ndarray, bits: int, values: int) -> np.ndarray:
    """Unpack uint8 into int8 [values]. Bits after the last value are ignored."""
    stream = np.unpackbits(packed)[: values * bits].reshape(values, bits)
    padded = np.pad(stream, ((0, 0), (8 - bits, 0)))
    return (np.packbits(padded, axis=1)[:, 0].astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def packed_bytes(values: int, bits: int) -> int:
    """Return the number of bytes that this many values take."""
    return -(-values * bits // 8)


def pack_reference(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack with `np.packbits`: the simple reference for the fast paths."""
    unsigned = (values.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    return np.packbits(np.unpackbits(unsigned[:, None], axis=1)[:, 8 - bits :])


def _pack_int4(values: np.ndarray) -> np.ndarray:
    """Pack two values per byte. Adding 8 to a 4-bit value flips its highest bit."""
    pairs = values.view("<u2")
    packed = (pairs << 4) & 0xF0
    packed |= (pairs >> 8) & 0x0F
    packed ^= 0x88
    return packed.astype(np.uint8)


def _pack_int6(values: np.ndarray) -> np.ndarray:
    """Pack four values into 24 bits, and four of these into three words."""
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
    """Return the order-0 entropy of uint8 symbols, in bits per symbol."""
    counts = np.bincount(symbols, minlength=256)
    share = counts[counts > 0] / max(1, len(symbols))
    return float(-(share * np.log2(share)).sum())
