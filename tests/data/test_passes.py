"""How often a run reads its training split, compared with the batches that its ranks are given."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from jepa_lm.data.corpora import Austen, FineWeb
from jepa_lm.data.passes import Passes, figure
from jepa_lm.data.shards import ShardWriter
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.token_data import TokenData
from jepa_lm.data.tokenizers import ByteTokenizer

LAYOUTS = [(1, 1), (1, 3), (2, 1), (3, 2)]
"""Ranks and micro-batches of a step."""


@pytest.fixture
def stream(tmp_path):
    """The tokens 0, 1, ..., 996: 997 is prime, so no batch divides it."""
    with ShardWriter(tmp_path / "t.bin") as shard:
        shard.write(np.arange(997))
    return TokenStream([tmp_path / "t.bin"])


def data_of(stream, order="stream", corpus=None, **settings) -> TokenData:
    data = TokenData(
        corpus=corpus or Austen(),
        tokenizer=ByteTokenizer(vocab_size=256),
        seq_len=8,
        batch_tokens=96,
        val_batch_tokens=96,
        order=order,
        seed=3,
        cache_dir="unused",
        **settings,
    )
    data.streams = {"train": stream}
    return data


def lasts(data: TokenData, ranks: int, accumulate: int) -> int:
    """Return the number of whole steps before a step that reads a token a second time."""
    orders = [data.order_of(rank, ranks, accumulate) for rank in range(ranks)]
    stream, seen, step = data.streams["train"], Counter(), 0
    while True:
        for index in range(step * accumulate, (step + 1) * accumulate):
            for order in orders:
                batch = order.batch(stream, index)
                seen.update(batch["inputs"].flatten().tolist())
                if (
                    data.order == "stream"
                ):  # a window's last target is the next window's first input
                    seen[int(batch["targets"][-1, -1])] += 1
        if max(seen.values()) > 1:
            return step
        step += 1


@pytest.mark.parametrize("order", ["stream", "shuffle"])
@pytest.mark.parametrize(("ranks", "accumulate"), LAYOUTS)
def test_the_first_pass_ends_where_a_token_is_read_again(stream, order, ranks, accumulate):
    data = data_of(stream, order)
    passes, true = data.passes(ranks, accumulate), lasts(data, ranks, accumulate)
    assert passes.first == true
    assert passes.after(true) <= 1 < passes.after(true + 1)
    assert passes.after(1000) == pytest.approx(1000 * 96 / 997, rel=0.07)
    assert not passes.will_repeat(true, None)
    assert passes.will_repeat(true + 1, None)


def test_forgotten_ranks_or_micro_batches_would_be_seen(stream):
    """Planted bug: counting one rank's share of a micro-batch as a whole step."""
    data = data_of(stream)
    order = data.order_of(0, 3, 2)
    order.world_size = 1
    taken, whole = order.share(stream.total)
    for wrong in (Passes(2 * taken, whole, ""), Passes(3 * taken, whole, "")):
        assert wrong.first != lasts(data, 3, 2)


def test_what_is_said_depends_on_the_budget():
    passes = Passes(step=8, whole=100, remedy="more text")
    assert passes.announced(30, None, 0) == "passes over the training split: 2.40"
    assert passes.announced(30, 60.0, 0) == "passes over the training split: at most 2.40"
    assert passes.announced(None, 60.0, 0) == "a pass over the training split takes 12 steps"
    assert passes.announced(None, 60.0, 25).endswith("12 steps, 2.00 so far")
    assert not passes.will_repeat(30, 60.0)
    assert not passes.will_repeat(None, 60.0)
    assert not Passes(10, 100, "").will_repeat(10, None)  # a pass to its end is no second one
    assert Passes(10, 100, "").will_repeat(11, None)
    assert "lasts for 12 steps" in passes.warning()
    assert "2.40 passes in all; more text or" in passes.warning(30)
    assert [figure(x) for x in (0.00123, 0.441, 2.0, 12345.6)] == [
        "0.0012",
        "0.44",
        "2.00",
        "12,345.60",
    ]


def test_a_warning_names_the_setting_that_gives_more_text(stream):
    fineweb = FineWeb(
        folder="x",
        tokenizer_file=None,
        train_shards=3,
        path=None,
        special_ids=0,
        repo_id="x/y",
        revision="main",
    )
    assert "data.path=FOLDER" in data_of(stream).passes(1, 1).warning()
    assert "data.corpus.train_shards=3" in data_of(stream, corpus=fineweb).passes(1, 1).warning()
    assert "data.train_tokens=997" in data_of(stream, train_tokens=997).passes(1, 1).warning()
