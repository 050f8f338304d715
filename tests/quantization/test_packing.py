"""Packed integers against the plain path."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_lm.quantization.packing import BLOCK, FAST, pack, pack_reference, packed_bytes, unpack


def values_of(bits: int, count: int, seed: int = 0) -> np.ndarray:
    half = 1 << (bits - 1)
    return np.random.default_rng(seed).integers(-half, half, size=count).astype(np.int8)


@given(bits=st.integers(2, 8), count=st.integers(0, 200), seed=st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_what_was_packed_comes_back(bits, count, seed):
    values = values_of(bits, count, seed)
    packed = pack(values, bits)
    assert len(packed) == packed_bytes(count, bits)
    assert np.array_equal(packed, pack_reference(values, bits))
    assert np.array_equal(unpack(packed, bits, count), values)


@pytest.mark.parametrize("bits", FAST)
@pytest.mark.parametrize("count", [BLOCK - 1, BLOCK, 2 * BLOCK + 17])
def test_fast_paths_are_bit_identical_over_several_blocks(bits, count):
    values = values_of(bits, count)
    assert np.array_equal(pack(values, bits), pack_reference(values, bits))
    strided = np.repeat(values, 2)[::2]
    assert np.array_equal(pack(strided, bits), pack_reference(values, bits))


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_stream_is_that_of_written_out_binary_digits(bits):
    half = 1 << (bits - 1)
    values = np.array([-half, half - 1, 0, -1, 1], dtype=np.int8)
    digits = "".join(format(int(v) + half, f"0{bits}b") for v in values)
    digits += "0" * (-len(digits) % 8)
    wanted = bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    assert pack(values, bits).tobytes() == wanted
