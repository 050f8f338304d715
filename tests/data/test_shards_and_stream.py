"""Shard files and the batches read from them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from jepa_lm.data import shards as shard_files
from jepa_lm.data.shards import (
    HEADER_BYTES,
    ShardWriter,
    check_token_ids,
    open_shard,
    without_special_ids,
)
from jepa_lm.data.stream import ShuffleOrder, TokenStream, TrainBatches, make_order
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import HOST
from tests.forks import begun_together


def write(path, ids):
    with ShardWriter(path) as shard:
        shard.write(ids)
    return path


@pytest.fixture
def shards(tmp_path):
    """Three shards that hold 0, 1, 2, ..., 999."""
    cuts = [(0, 300), (300, 301), (301, 1000)]
    return [write(tmp_path / f"t_{i}.bin", np.arange(a, b)) for i, (a, b) in enumerate(cuts)]


def test_header_is_the_challenges(tmp_path):
    path = write(tmp_path / "a.bin", [5, 6, 65535])
    header = np.fromfile(path, dtype="<i4", count=256)
    assert header[:4].tolist() == [20240520, 1, 3, 0]
    assert np.fromfile(path, dtype="<u2", offset=1024).tolist() == [5, 6, 65535]
    assert open_shard(path).tolist() == [5, 6, 65535]


def damaged(tmp_path, how):
    path = write(tmp_path / "a.bin", np.arange(100))
    data = bytearray(path.read_bytes())
    if how == "empty":
        data = b""
    elif how == "truncated":
        data = data[:-10]
    elif how == "too long":
        data += b"xx"
    elif how == "magic":
        data[0] ^= 1
    elif how == "version":
        data[4] = 9
    elif how == "no tokens":
        data = data[:HEADER_BYTES]
        data[8:12] = bytes(4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("empty", "empty or truncated"),
        ("truncated", "truncated: its header promises 100 tokens"),
        ("too long", "too long"),
        ("magic", "bad header"),
        ("version", "bad header"),
        ("no tokens", "holds no tokens"),
    ],
)
def test_a_damaged_shard_is_one_clear_line(tmp_path, how, words):
    with pytest.raises(UserError, match=words) as caught:
        open_shard(damaged(tmp_path, how))
    assert "a.bin" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_token_ids_are_checked_once(tmp_path, monkeypatch):
    path, notes = write(tmp_path / "a.bin", [1, 2, 3, 700, 4]), tmp_path / "cache" / "checked"
    with pytest.raises(UserError, match=r"token id 700 at position 3, but .*vocab_size=512"):
        check_token_ids([path], 512, notes)
    with monkeypatch.context() as patched:
        patched.setattr(shard_files, "BLOCK", 2)
        with pytest.raises(UserError, match=r"token id 700 at position 3, but .*vocab_size=700"):
            check_token_ids([path], 700, notes)
    check_token_ids([path], 1024, notes)
    with monkeypatch.context() as patched:
        patched.setattr(shard_files, "open_shard", None)  # not read again
        check_token_ids([path], 1024, notes)
    with pytest.raises(UserError, match="token id 700"):
        check_token_ids([path], 512, notes)  # the note was made for another vocabulary
    assert set(os.listdir(tmp_path)) == {"a.bin", "cache"}  # nothing is written beside the data
    write(path, [1, 2, 3, 7000, 4, 4])
    with pytest.raises(UserError, match="token id 7000"):
        check_token_ids([path], 1024, notes)  # the file has changed


def test_where_no_note_can_be_kept_the_ids_are_still_checked(tmp_path):
    path = write(tmp_path / "a.bin", [1, 700])
    for left in ("", "{", "[]"):  # written by an earlier version
        (tmp_path / "checked.json").write_text(left)
        check_token_ids([path], 1024, tmp_path / "a.bin" / "no folder")
    with pytest.raises(UserError, match="token id 700"):
        check_token_ids([path], 512, tmp_path / "a.bin" / "no folder")


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_processes_that_begin_together_on_new_shards_do_not_disturb_one_another(tmp_path):
    for start in range(5):
        folder = tmp_path / str(start)
        folder.mkdir()
        paths = [write(folder / f"t_{i}.bin", np.arange(2000) % 450) for i in range(4)]

        def prepared(folder=folder, paths=paths):
            cache = folder / "cache"
            copies = [without_special_ids(path, 4, cache / "without") for path in paths]
            check_token_ids([*paths, *copies], 450, cache / "checked")
            assert all(len(open_shard(copy)) == 1980 for copy in copies)

        assert begun_together(prepared) == 0
        assert not list(folder.rglob("*.tmp"))


def test_a_copy_without_special_ids_is_told_apart_by_folder_and_built_again_when_damaged(tmp_path):
    ids = {"a": [3, 4, 6], "b": [1, 7, 8]}
    paths = {name: tmp_path / name / "t.bin" for name in ids}
    for name, path in paths.items():
        path.parent.mkdir()
        write(path, ids[name])
        os.utime(path, (10**9, 10**9))  # as after unpacking an archive
    copies = {name: without_special_ids(path, 4, tmp_path / "c") for name, path in paths.items()}
    assert {name: open_shard(copy).tolist() for name, copy in copies.items()} == {
        "a": [0, 2],
        "b": [3, 4],
    }
    left = tmp_path / "c" / f".{HOST}-999999999-00.tmp"
    left.write_bytes(b"of a killed process")
    os.truncate(copies["a"], 100)
    assert open_shard(without_special_ids(paths["a"], 4, tmp_path / "c")).tolist() == [0, 2]
    assert not left.exists()
    with pytest.raises(UserError, match="nothing but ids below 9"):
        without_special_ids(paths["a"], 9, tmp_path / "c")
    assert len(os.listdir(tmp_path / "c")) == 2


def test_a_shard_appears_when_it_is_complete(tmp_path):
    path = write(tmp_path / "a.bin", [1, 2])
    with pytest.raises(OverflowError), ShardWriter(path) as shard:
        shard.write([3, 70_000])
    assert open_shard(path).tolist() == [1, 2]
    assert os.listdir(tmp_path) == ["a.bin"]


def test_stream_is_an_endless_circle(shards):
    stream = TokenStream(shards)
    assert stream.total == 1000
    reference = np.arange(1000)
    for start, count in [(0, 10), (295, 12), (299, 3), (990, 30), (2995, 2500), (-5, 10)]:
        out = np.empty(count, dtype=np.int64)
        stream.read(start, out)
        assert out.tolist() == [int(reference[(start + i) % 1000]) for i in range(count)]


def test_stream_can_be_limited(shards):
    stream = TokenStream(shards, limit=310)
    out = np.empty(20, dtype=np.int64)
    stream.read(300, out)
    assert out.tolist() == [*range(300, 310), *range(10)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_stream_order_hands_out_the_challenges_chunks(shards, world_size):
    """Chunks of W (n + 1) consecutive tokens; rank r takes the r-th n + 1 of each."""
    stream, n, T = TokenStream(shards), 24, 8
    for index in (0, 1, 7, 50):
        for rank in range(world_size):
            order = make_order(
                "stream", tokens=n, seq_len=T, rank=rank, world_size=world_size, seed=0
            )
            batch = order.batch(stream, index)
            start = index * world_size * (n + 1) + rank * (n + 1)
            chunk = torch.tensor([(start + i) % 1000 for i in range(n + 1)])
            assert torch.equal(batch["inputs"], chunk[:-1].view(3, 8))
            assert torch.equal(batch["targets"], chunk[1:].view(3, 8))
            assert batch["inputs"].dtype == torch.int64


def test_shuffle_covers_each_pass_once_and_differs_between_passes(shards):
    stream = TokenStream(shards)
    order = ShuffleOrder(tokens=40, seq_len=20, rank=0, world_size=1, seed=3)
    windows = (1000 - 1) // 20

    def starts(number):
        return [order._start(number * windows + i, 1000) for i in range(windows)]

    first, second = starts(0), starts(1)
    assert len({s % 20 for s in first}) == 1
    assert sorted((s - first[0] % 20) // 20 for s in first) == list(range(windows))
    assert first != second
    batch = order.batch(stream, 0)
    assert torch.equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    assert batch["inputs"][0, 0] == first[0]


def test_order_and_offset_of_a_shuffle_are_drawn_from_seed_and_pass(shards):
    stream = TokenStream(shards)

    def read(seed: int, number: int = 0) -> list[int]:
        """Return the first position of every window of a pass."""
        order = make_order("shuffle", tokens=20, seq_len=20, rank=0, world_size=1, seed=seed)
        batches = (order.batch(stream, number * 49 + i) for i in range(49))
        return [int(batch["inputs"][0, 0]) for batch in batches]

    drawn = [read(seed, number) for seed in range(3) for number in range(3)]
    assert read(1, 2) == drawn[5]
    offsets = [min(starts) for starts in drawn]
    orders = {tuple(start - least for start in s) for s, least in zip(drawn, offsets, strict=True)}
    assert len(orders) == 9
    assert all(offset < 20 for offset in offsets)
    assert len(set(offsets)) > 5


@pytest.mark.parametrize("corpus", ["text", "rows"])
def test_two_seeds_of_a_run_read_its_data_in_two_orders(small, compose, corpus):
    def read(seed: int) -> torch.Tensor:
        words = ("data=hmm", "data.corpus.train_rows=24", "data.corpus.val_rows=2")
        rows = (*words, "data.batch_tokens=512")
        config = (
            small(f"seed={seed}") if corpus == "text" else compose("train", f"seed={seed}", *rows)
        )
        data = build("data", resolve(config)["data"])
        if corpus == "rows":
            data.setup()
        else:  # nothing has to be prepared
            data.streams = {"train": TokenStream.of(np.arange(4000) % 400)}
        stream = data.streams["train"]
        return data.order_of(rank=0, world_size=1, accumulate=1).batch(stream, 0)["inputs"]

    first, again, other = read(1), read(1), read(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_shuffled_joint_batch_is_the_same_for_any_number_of_ranks(shards):
    stream = TokenStream(shards)

    def joint(world_size, index):
        rows = [
            ShuffleOrder(
                tokens=80 // world_size, seq_len=10, rank=r, world_size=world_size, seed=1
            ).batch(stream, index)["inputs"]
            for r in range(world_size)
        ]
        return torch.cat(rows)

    for index in (0, 3, 40):
        assert torch.equal(joint(1, index), joint(4, index))


@pytest.mark.parametrize("name", ["stream", "shuffle"])
def test_batches_go_on_from_any_number(shards, name):
    stream = TokenStream(shards)
    order = make_order(name, tokens=16, seq_len=8, rank=0, world_size=1, seed=5)
    whole = iter(TrainBatches(stream, order, 0))
    seen = [next(whole) for _ in range(200)]
    fresh = make_order(name, tokens=16, seq_len=8, rank=0, world_size=1, seed=5)
    later = iter(TrainBatches(stream, fresh, 150))
    for want in seen[150:]:
        got = next(later)
        assert torch.equal(got["inputs"], want["inputs"])
        assert torch.equal(got["targets"], want["targets"])
