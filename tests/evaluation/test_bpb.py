"""Bits per byte: every target scored once, plain cross entropy, true byte counts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jepa_lm.artifact.loaded_model import load_data, load_model
from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.shards import ShardWriter
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.tokenizers import TokenBytes
from jepa_lm.data.windows import StandardWindows
from jepa_lm.evaluation.bpb import BPBMeter, target_bytes
from jepa_lm.model.checkpoint import inference_model, read_checkpoint
from jepa_lm.run import evaluate
from jepa_lm.utils.errors import UserError


def stream_of(tmp_path, ids) -> TokenStream:
    with ShardWriter(tmp_path / "s.bin") as shard:
        shard.write(ids)
    return TokenStream([tmp_path / "s.bin"])


def targets_scored(windows) -> list[int]:
    return [int(t) for i in range(len(windows)) for t in windows[i]["targets"].flatten()]


@pytest.mark.parametrize(
    ("total", "seq_len"),
    [(n, t) for n in (2, 9, 10, 11, 64, 65, 101) for t in (1, 8, 10) if t < n],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_every_target_is_scored_exactly_once(tmp_path, total, seq_len, rows):
    stream = stream_of(tmp_path, np.arange(total))
    windows = StandardWindows(stream, seq_len=seq_len, rows=rows)
    assert targets_scored(windows) == list(range(1, total))
    for i in range(len(windows)):
        batch = windows[i]
        assert torch.equal(batch["inputs"] + 1, batch["targets"])
        assert batch["inputs"].shape[1] <= seq_len


def test_dropping_the_tail_would_be_seen(tmp_path):
    """Planted bug of #903: only whole windows are scored."""
    windows = StandardWindows(stream_of(tmp_path, np.arange(101)), seq_len=8, rows=3)
    windows.tail = 0
    assert targets_scored(windows) != list(range(1, 101))


def test_ranks_together_score_every_target_once(tmp_path):
    windows = StandardWindows(stream_of(tmp_path, np.arange(300)), seq_len=7, rows=2)
    scored = [
        int(t)
        for rank in range(4)
        for i in range(rank, len(windows), 4)
        for t in windows[i]["targets"].flatten()
    ]
    assert sorted(scored) == list(range(1, 300))


def test_validation_is_plain_cross_entropy_over_the_bytes_of_the_text(trained):
    """Recomputed here from the shards, window by window, without the project's evaluation code."""
    import lightning.pytorch as pl
    from hydra.utils import instantiate

    from jepa_lm.utils.config import resolve

    config = resolve(trained.config)
    pl.seed_everything(0, verbose=False)
    data = instantiate(config["data"], _convert_="all")
    data.setup()
    model = inference_model(read_checkpoint(trained.checkpoint))
    tokens = np.empty(data.streams["val"].total, dtype=np.int64)
    data.streams["val"].read(0, tokens)
    T = config["data"]["seq_len"]
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, T):
            window = torch.from_numpy(tokens[start : start + T + 1])
            logits, _ = model(window[None, :-1])
            nats += F.cross_entropy(logits[0], window[1:], reduction="sum").item()
    # the first token is a BOS, so the targets represent the whole text
    size = len(data.tokenizer.decode(tokens.tolist()))
    summary = json.loads((trained.folder / "summary.json").read_text())
    assert summary["val"]["bytes"] == size
    assert summary["val"]["tokens"] == len(tokens) - 1
    assert summary["val"]["nll"] == pytest.approx(nats / (len(tokens) - 1), abs=1e-6)
    assert summary["val"]["bpb"] == pytest.approx(nats / math.log(2) / size, abs=1e-6)


def test_eval_reproduces_the_validation_of_training(trained, compose, tmp_path):
    got = evaluate(compose("eval", f"ckpt_path={trained.folder}", "eval.baselines=false"))
    assert got == pytest.approx(trained.bpb, abs=1e-6)
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert result["protocol"] == "standard"
    assert result["audit"]["matches"] is True
    assert result["audit"]["lossless"] is True


@pytest.mark.parametrize("batch_tokens", [32, 100, 100_000])
def test_the_score_does_not_depend_on_the_batch(trained, compose, batch_tokens):
    cfg = compose(
        "eval",
        f"ckpt_path={trained.checkpoint}",
        "eval.baselines=false",
        f"eval.batch_tokens={batch_tokens}",
    )
    assert evaluate(cfg) == pytest.approx(trained.bpb, abs=1e-6)


def test_z_loss_or_an_auxiliary_loss_would_be_seen(trained, compose, monkeypatch):
    """Planted bug: anything added to the evaluation's loss changes the score."""
    from jepa_lm.evaluation import bpb

    plain = bpb.token_nll

    def with_z_loss(logits, targets):
        return plain(logits, targets) + 1e-4 * logits.logsumexp(-1).square()

    monkeypatch.setattr(bpb, "token_nll", with_z_loss)
    got = evaluate(compose("eval", f"ckpt_path={trained.checkpoint}", "eval.baselines=false"))
    assert got != pytest.approx(trained.bpb, abs=1e-6)


def test_byte_counter_equals_the_numpy_table():
    table = TokenBytes(
        np.array([0, 1, 3, 4]), np.array([False, False, True, True]), np.array([True, *[False] * 3])
    )
    inputs, targets = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[3, 2, 2, 1]])
    got = ByteCounter(table)(inputs, targets)
    assert got.tolist() == [[4, 4, 4, 1]]
    assert got.tolist() == table.count(inputs.numpy(), targets.numpy()).tolist()
    # Of a window whose last two positions are scored: each target after its own input.
    scored = {"inputs": inputs, "targets": targets[:, -2:]}
    assert target_bytes(scored, ByteCounter(table)).tolist() == [[4, 1]]
    assert ByteCounter(table, 0.5)(inputs, targets).tolist() == [[2, 2, 2, 0.5]]


def test_meter_adds_up():
    meter = BPBMeter()
    meter.update(torch.full((2, 3), math.log(2)), torch.full((2, 3), 2))
    meter.update(torch.full((1, 2), math.log(4)), torch.full((1, 2), 1))
    score = meter.score()
    assert (score.tokens, score.bytes) == (8, 14)
    assert score.nll == pytest.approx(math.log(2) * 10 / 8)
    assert score.bpb == pytest.approx(10 / 14)
    answers = torch.tensor([[True, False, True]])
    meter = BPBMeter(hits=True)
    nats, hits = torch.tensor([[1.0, 50.0, 2.0]]), torch.tensor([[True, True, False]])
    meter.update(nats, torch.tensor([[3, 100, 1]]), answers, hits)
    score = meter.score()
    assert (score.nll, score.tokens, score.bytes) == (1.5, 2, 4)
    assert score.others == {"answer_accuracy": 0.5}


@pytest.mark.parametrize("key", ["path", "val_path", "tokenizer.model"])
def test_text_that_has_moved_is_one_line_that_names_it(trained, tmp_path, key):
    loaded, gone = load_model(str(trained.folder), None), str(tmp_path / "gone")
    loaded = loaded._replace(source=tmp_path / "last.ckpt")  # no tokenizer beside it
    if key == "tokenizer.model":
        changed = {"tokenizer": {**loaded.data["tokenizer"], "model": gone}}
    else:
        changed = {key: gone, "corpus": {**loaded.data["corpus"], key: gone}}
    with pytest.raises(
        UserError, match=rf"trained with data\.{key}={gone}, .*restore it or link it"
    ):
        load_data(loaded._replace(data={**loaded.data, **changed}), {})


def test_a_link_to_where_the_text_is_now_is_as_good(trained, tmp_path, small_text):
    loaded, link = load_model(str(trained.folder), None), tmp_path / "link.txt"
    link.symlink_to(small_text)
    moved = {"path": str(link), "corpus": {**loaded.data["corpus"], "path": str(link)}}
    there = load_data(loaded, {})
    again = load_data(loaded._replace(data={**loaded.data, **moved}), {})
    assert again.prepared.train == there.prepared.train
