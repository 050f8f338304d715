"""Claim 10: speed of packing int4 and int6, bit-identical to `np.packbits`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.measure import Claim, at_least, interleaved, memcpy_gbps
from jepa_lm.quantization.packing import pack, pack_reference

VALUES, CHECKED, ROUNDS = 1 << 25, 1 << 20, 7
TARGETS = {4: 1.5, 6: 0.6}


def claims() -> Iterator[Claim]:
    """Yield a claim for each width."""
    for bits, target in TARGETS.items():
        half = 1 << (bits - 1)
        values = np.random.default_rng(0).integers(-half, half, size=VALUES).astype(np.int8)
        part = values[:CHECKED]
        assert np.array_equal(pack(part, bits), pack_reference(part, bits))
        timings = interleaved(
            partial(pack_reference, part, bits),
            rounds=ROUNDS,
            fast=partial(pack, values, bits),
        )
        speed = VALUES / timings.median("fast") / 1e9
        yield at_least(
            f"packing/int{bits}",
            speed,
            unit="G values/s",
            target=target,
            limit=memcpy_gbps(),
            spread=speed * timings.spread,
            details={"packbits_path": CHECKED / timings.reference / 1e9, "values": VALUES},
        )
