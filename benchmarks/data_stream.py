"""Claim 9: speed of training batches from memory-mapped shards, against a plain memory copy."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import (
    Claim,
    aa_spread,
    at_least,
    at_most,
    interleaved,
    memcpy_gbps,
    seconds,
)
from jepa_lm.data.shards import HEADER_BYTES, ShardWriter
from jepa_lm.data.stream import StreamOrder, TokenStream

SHARDS = 3
SHARD_TOKENS = 20_000_000
BATCHES = (65_536, 524_288)
SEQ_LEN = 1024
ROUNDS = 15
SWITCH_PASSES = 40
TARGET_TOKENS_PER_SECOND = 1.2e9
TARGET_SWITCH_MS = 1.0


def claims() -> Iterator[Claim]:
    """Yield tokens per second for two batch sizes, then the cost of crossing into another shard."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder))
        check(TokenStream(paths), paths)
        for tokens in BATCHES:
            yield throughput(paths, tokens)
        yield switching(paths)


def write_shards(folder: Path) -> list[Path]:
    """Write shards of random tokens; they are then in the page cache."""
    rng = np.random.default_rng(0)
    paths = [folder / f"shard_{i}.bin" for i in range(SHARDS)]
    for path in paths:
        with ShardWriter(path) as shard:
            shard.write(rng.integers(0, 8192, SHARD_TOKENS, dtype=np.uint16))
    return paths


def check(stream: TokenStream, paths: list[Path]) -> None:
    """Check that the batches match the files, also across a border between shards."""
    files = np.concatenate([np.fromfile(path, dtype="<u2", offset=HEADER_BYTES) for path in paths])
    order = make_order(BATCHES[1])
    for index in (0, SHARD_TOKENS // BATCHES[1], 2 * SHARD_TOKENS // BATCHES[1]):
        start = index * (BATCHES[1] + 1)
        want = torch.from_numpy(files[start : start + BATCHES[1] + 1].astype(np.int64))
        batch = order.batch(stream, index)
        assert torch.equal(batch["inputs"].flatten(), want[:-1])
        assert torch.equal(batch["targets"].flatten(), want[1:])


def make_order(tokens: int) -> StreamOrder:
    """Return the challenge's order for one process."""
    return StreamOrder(tokens=tokens, seq_len=SEQ_LEN, rank=0, world_size=1, seed=0)


def one_pass(paths: list[Path], tokens: int) -> Callable[[], None]:
    """Return a function that reads every token once, as training does: from new maps, holding one batch."""
    order = make_order(tokens)

    def read() -> None:
        stream = TokenStream(paths)
        held = None
        for index in range(SHARDS * SHARD_TOKENS // (tokens + 1)):
            held = order.batch(stream, index)
        assert held is not None

    return read


def throughput(paths: list[Path], tokens: int) -> Claim:
    """Measure tokens per second into int64 batches."""
    count = SHARDS * SHARD_TOKENS // (tokens + 1)
    read = one_pass(paths, tokens)
    timings = interleaved(read, rounds=ROUNDS, between=read)
    rate = count * tokens / timings.median("between")
    # A batch fits into the cache, so its limit is the copy of a block of the same size. The copy moves
    # 2 bytes per byte; a token moves 10: 2 read and 8 written.
    block, memory = memcpy_gbps(8 * tokens), memcpy_gbps()
    return at_least(
        f"data_stream/batch_{tokens}",
        rate,
        unit="tokens per second",
        target=TARGET_TOKENS_PER_SECOND,
        limit=block * 2e9 / 10,
        spread=rate * timings.spread,
        details={"memcpy_gbps_of_a_batch": block, "memcpy_gbps_of_256_MiB": memory},
    )


def switching(paths: list[Path]) -> Claim:
    """Measure the additional milliseconds of a batch that crosses from one shard into the next.

    Every batch is read once from a new map, so that loading the other shard's first pages counts.
    """
    order = make_order(BATCHES[0])
    step = BATCHES[0] + 1
    before: list[float] = []
    across: list[float] = []
    after: list[float] = []
    for _ in range(SWITCH_PASSES):
        stream = TokenStream(paths)
        for border in range(SHARD_TOKENS, SHARDS * SHARD_TOKENS, SHARD_TOKENS):
            crossing = border // step
            order.batch(stream, crossing - 2)  # the first read after a jump costs more
            for index, found in ((-1, before), (0, across), (1, after)):
                read = partial(order.batch, stream, crossing + index)
                found.append(1000 * seconds(read))
    pairs = zip(before, across, after, strict=True)
    return at_most(
        "data_stream/switch_shards",
        statistics.median(b - (a + c) / 2 for a, b, c in pairs),
        unit="ms",
        target=TARGET_SWITCH_MS,
        limit=0.0,
        spread=aa_spread(before, after),
        details={"inside_ms": statistics.median(before + after), "slowest_ms": max(across)},
    )
