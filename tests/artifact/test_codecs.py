"""Codecs: lossless, run in parallel processes, bounded when decompressing; byte planes."""

from __future__ import annotations

import contextlib
import lzma
import subprocess
import tracemalloc
import zlib

import brotli
import numpy as np
import pytest
import torch
import zstandard

from jepa_lm.artifact import ans, compression
from jepa_lm.artifact.codecs import CHUNK, COMPRESSORS, compress, decompress
from jepa_lm.artifact.compression import compress_best
from jepa_lm.artifact.container import from_file
from jepa_lm.artifact.layout import DTYPES, dtypes_worth_planes, from_planes, streams_of, to_planes
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.memory import PeakMemory
from jepa_lm.utils.process import fresh_python


def numbers(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 9, count, dtype=np.uint8).tobytes()


@pytest.mark.parametrize("codec", COMPRESSORS)
def test_codecs_round_trip_and_refuse_bombs(codec):
    raw = numbers(CHUNK + 50_000)  # more than one piece
    packed = compress(codec, raw)
    assert decompress(codec, packed, len(raw)) == raw
    with pytest.raises(UserError, match="more than the 1000 bytes"):
        decompress(codec, packed, 1000)
    with pytest.raises(UserError, match=r"truncated\?|damaged"):
        decompress(codec, packed[: len(packed) // 2], len(raw))
    with pytest.raises(UserError, match=r"damaged|declares"):
        decompress(codec, b"\x55" * 64, 64)


@pytest.mark.parametrize("codec", COMPRESSORS)
def test_a_small_stream_takes_little_memory(codec):
    """Without its size, zstd takes 700 MB for what it could look back at."""
    memory = PeakMemory()
    compress(codec, numbers(20_000))
    peak = memory.peak(torch.device("cpu"))
    assert peak is None or peak < 64 << 20


BOMBS = {
    "brotli": lambda raw: brotli.compress(raw, quality=1),
    "lzma": lambda raw: lzma.compress(raw, preset=0),
    "zstd": lambda raw: zstandard.compress(raw, level=1),
    "zlib": lambda raw: zlib.compress(raw, level=1),
    "ans": lambda raw: ans.compress(raw[: 1 << 20]),
}


@pytest.mark.parametrize("codec", COMPRESSORS)
def test_a_bomb_is_stopped_at_the_promised_size(codec):
    """64 MB of zeros in a small file are never held in memory: the header promises 1 kB."""
    bomb = BOMBS[codec](bytes(1 << 26))
    tracemalloc.start()
    with pytest.raises(UserError, match="more than the 1024 bytes"):
        decompress(codec, bomb, 1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_ans_comes_within_a_thousandth_of_the_entropy():
    """Huffman codes lose more on normal values, the likeliest of which has less than 3 bits."""
    values = np.random.default_rng(0).normal(0, 1.5, 1 << 20).round().astype(np.int8)
    share = np.unique(values, return_counts=True)[1] / len(values)
    entropy = -(share * np.log2(share)).sum() * len(values) / 8
    raw = values.tobytes()
    packed = compress("ans", raw)
    assert decompress("ans", packed, len(raw)) == raw
    states = 8 * ans.MOST_STATES  # eight bytes each
    assert entropy < len(packed) < 1.001 * entropy + states
    assert len(compress("zlib", raw)) > 1.02 * entropy


@pytest.mark.parametrize("size", [0, 1, ans.UNIT - 1, ans.UNIT, ans.UNIT + 1, 100_003])
def test_ans_gives_back_any_length_and_any_neighbours(size):
    """A repeating header, noise, a bell curve, zeros: each stretch has its own frequencies."""
    rng = np.random.default_rng(size)
    bell = rng.normal(0, 3, 30_000).round().astype(np.int8).tobytes()
    raw = (b'{"name":"block","shape":[1,2]}' * 700 + rng.bytes(20_000) + bell + bytes(40_000))[
        :size
    ]
    assert decompress("ans", compress("ans", raw), size) == raw


def test_an_ans_stream_with_any_byte_changed_is_refused_or_the_same():
    """Any error other than a UserError, or an endless loop, fails."""
    raw = numbers(40_000) + bytes(20_000)
    packed, rng = compress("ans", raw), np.random.default_rng(0)
    for at in [*range(ans.HEAD.size), *rng.integers(0, len(packed), 60)]:
        changed = bytearray(packed)
        changed[at] ^= int(rng.integers(1, 256))
        with contextlib.suppress(UserError):
            assert len(decompress("ans", bytes(changed), len(raw))) == len(raw)


def test_the_smallest_codec_wins_for_each_stream():
    text, noise = b"abc" * 10_000, numbers(10_000)
    found = compress_best([text, noise], list(COMPRESSORS))
    for stream, raw in zip(found, (text, noise), strict=True):
        assert stream.sizes.keys() == COMPRESSORS.keys()
        assert len(stream.data) == stream.sizes[stream.codec] == min(stream.sizes.values())
        assert decompress(stream.codec, stream.data, stream.raw_bytes) == raw


@pytest.mark.slow
def test_codecs_in_processes_of_their_own_give_the_same_bytes(monkeypatch):
    streams = [numbers(200_000), numbers(2_500_000, seed=1)]
    monkeypatch.setattr(compression, "HERE", 1 << 40)
    here = compress_best(streams, ["zstd", "zlib"])
    monkeypatch.setattr(compression, "HERE", 0)
    assert compress_best(streams, ["zstd", "zlib"]) == here


def test_a_codec_that_dies_is_no_success(monkeypatch):
    monkeypatch.setattr(compression, "HERE", 0)
    monkeypatch.setattr(compression, "pieces", lambda raw: iter(()))
    assert compress_best([b""], ["zlib"])[0].data == compress("zlib", b"")
    monkeypatch.setitem(compression.COMPRESSORS, "missing", None)
    with pytest.raises(UserError, match="the process of missing ended with exit code 1"):
        compress_best([b""], ["missing"])
    monkeypatch.undo()
    monkeypatch.setattr(compression, "HERE", 0)
    monkeypatch.setattr(compression, "fresh_python", _killed_at_once)
    with pytest.raises(UserError, match="the process of zlib ended with exit code -9"):
        compress_best([numbers(3_000_000)], ["zlib"])


def _killed_at_once(*arguments, **settings):
    process = fresh_python(*arguments, **settings)
    process.kill()
    process.wait()
    return process


def test_a_fresh_process_runs_nothing_that_lies_in_the_current_folder(monkeypatch, tmp_path):
    """A folder with somebody else's artifact may also hold somebody else's modules."""
    (tmp_path / "brotli.py").write_text("open('made', 'w', encoding='utf-8')")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "of_the_user.py").write_text("print('found')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("mine")
    monkeypatch.setattr(compression, "HERE", 0)
    raw = numbers(1000)
    (packed,) = compress_best([raw], ["brotli"])
    assert decompress("brotli", packed.data, len(raw)) == raw
    assert not (tmp_path / "made").exists()
    with fresh_python("-m", "of_the_user", stdout=subprocess.PIPE) as process:
        assert process.communicate()[0].strip() == b"found"


def test_a_file_larger_than_any_artifact_is_not_read(tmp_path):
    path = tmp_path / "artifact.br"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a sparse file, which takes no space on the disk
    with pytest.raises(
        UserError, match=r"artifact\.br: 1099511627776 bytes is too large for an artifact"
    ):
        from_file(path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4)])
def test_byte_planes_come_back_exactly(dtype, shape):
    tensor = torch.randn(shape).to(DTYPES[dtype])
    planes = to_planes(tensor)
    assert planes.shape == (tensor.element_size(), *shape)
    back = from_planes(planes, dtype)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)
    plain = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    size = tensor.element_size()
    for i, plane in enumerate(planes):
        assert plane.reshape(-1).numpy().tobytes() == plain[i::size]


def test_planes_of_another_type_are_refused():
    with pytest.raises(ValueError, match="not byte planes of float32"):
        from_planes(torch.zeros(2, 3, dtype=torch.uint8), "float32")
    with pytest.raises(KeyError):
        from_planes(torch.zeros(2, 3, dtype=torch.uint8), "complex64")


def test_planes_are_taken_where_they_help_and_nowhere_else():
    bell = torch.randn(20_000) / 20
    assert dtypes_worth_planes([bell]) == [torch.float32]
    assert dtypes_worth_planes([bell.half(), torch.zeros(5, dtype=torch.int8)]) == [torch.float16]
    words = torch.randn(40)[torch.randint(0, 40, (20_000,))].half()  # whole values repeat
    assert dtypes_worth_planes([words]) == []
    assert dtypes_worth_planes([]) == []


def test_a_stream_for_each_kind_of_number():
    """int6 and int8 values look alike as bytes; they still get separate streams."""
    names = {"a": "int6", "a::scale": "scale", "b": "int8", "b::scale": "scale", "c": "int6"}
    tensors = {name: torch.zeros(2, dtype=torch.int8) for name in names}
    assert [set(s) for s in streams_of(tensors, names, "single")] == [set(tensors)]
    found = {frozenset(s) for s in streams_of(tensors, names, "per_format")}
    assert found == {frozenset("ac"), frozenset("b"), frozenset({"a::scale", "b::scale"})}
