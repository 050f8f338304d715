"""Claim 9: training batches from memory-mapped shards, against a plain copy of memory."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Claim, Timings, at_least, at_most, interleaved, memcpy_gbps
from jepa_lm.data.shards import ShardWriter
from jepa_lm.data.stream import StreamOrder, TokenStream

SHARDS = 3
SHARD_TOKENS = 20_000_000
BATCHES = (65_536, 524_288)
SEQ_LEN = 1024
ROUNDS = 15
TARGET_TOKENS_PER_SECOND = 1.2e9
TARGET_SWITCH_MS = 1.0


def claims() -> Iterator[Claim]:
    """Tokens per second for two batch sizes, then the cost of crossing into another shard."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder))
        stream = TokenStream(paths)
        check(stream, paths)
        for tokens in BATCHES:
            yield throughput(stream, tokens)
        yield switching(stream)


def write_shards(folder: Path) -> list[Path]:
    """Shards of random tokens, in the page cache once they are written."""
    rng = np.random.default_rng(0)
    paths = [folder / f"shard_{i}.bin" for i in range(SHARDS)]
    for path in paths:
        with ShardWriter(path) as shard:
            shard.write(rng.integers(0, 8192, SHARD_TOKENS, dtype=np.uint16))
    return paths


def check(stream: TokenStream, paths: list[Path]) -> None:
    """The batches are what the files hold, also across a border."""
    files = np.concatenate([np.fromfile(path, dtype="<u2", offset=1024) for path in paths])
    order = make_order(BATCHES[1])
    for index in (0, SHARD_TOKENS // BATCHES[1], 2 * SHARD_TOKENS // BATCHES[1]):
        start = index * (BATCHES[1] + 1)
        want = torch.from_numpy(files[start : start + BATCHES[1] + 1].astype(np.int64))
        batch = order.batch(stream, index)
        assert torch.equal(batch["inputs"].flatten(), want[:-1])
        assert torch.equal(batch["targets"].flatten(), want[1:])


def make_order(tokens: int) -> StreamOrder:
    """The challenge's order for one process."""
    return StreamOrder(tokens=tokens, seq_len=SEQ_LEN, rank=0, world_size=1, seed=0)


def batches(stream: TokenStream, tokens: int, count: int) -> Callable[[], None]:
    """Read `count` batches, as training does: each is used and dropped before the next."""
    order = make_order(tokens)

    def read() -> None:
        for index in range(count):
            order.batch(stream, index)

    return read


def throughput(stream: TokenStream, tokens: int) -> Claim:
    """Tokens per second into int64 batches."""
    count = SHARDS * SHARD_TOKENS // tokens
    read = batches(stream, tokens, count)
    timings = interleaved(read, rounds=ROUNDS, between=read)
    rate = count * tokens / timings.median("between")
    # what a copy would reach that moves the 2 bytes read and the 8 bytes written of each token
    limit = memcpy_gbps() * 2e9 / 10
    return at_least(
        f"data_stream/batch_{tokens}",
        rate,
        unit="tokens per second",
        target=TARGET_TOKENS_PER_SECOND,
        limit=limit,
        spread=rate * timings.spread,
    )


def switching(stream: TokenStream) -> Claim:
    """Milliseconds that a read costs more when it crosses from one shard into the next."""
    out = np.empty(BATCHES[0], dtype=np.int64)
    inside, across = 5_000_000, SHARD_TOKENS - BATCHES[0] // 2
    timings: Timings = interleaved(
        lambda: stream.read(inside, out), rounds=200, across=lambda: stream.read(across, out)
    )
    extra = [
        1000 * (b - (a + c) / 2)
        for a, b, c in zip(timings.first, timings.between["across"], timings.again, strict=True)
    ]
    return at_most(
        "data_stream/switch_shards",
        statistics.median(extra),
        unit="ms",
        target=TARGET_SWITCH_MS,
        limit=0.0,
        spread=1000 * timings.spread * timings.reference,
    )
