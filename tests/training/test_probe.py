"""Accuracies of frozen features: the solver, the counting, and a run that reports them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from jepa_lm.data.split import Split
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.tokenizers import ByteTokenizer
from jepa_lm.evaluation.linear_probe import LinearProbe, with_bias
from jepa_lm.objective import StepContext
from jepa_lm.run import train
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.training.probe import hits, probe, sample_windows
from jepa_lm.utils.config import resolve


def test_hits_count_ranks():
    scores = torch.arange(20.0).flip(0).expand(3, 20)  # index 0 is best
    assert hits(scores, torch.tensor([0, 4, 9])).tolist() == [1, 2, 3]
    assert hits(scores, torch.tensor([1, 5, 10])).tolist() == [0, 1, 2]


def test_the_linear_probe_is_ridge_regression():
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(400, 6, generator=draw)
    y = (h @ torch.randn(6, 4, generator=draw)).argmax(1)
    probe = LinearProbe(4)
    for part in (slice(150), slice(150, None)):
        probe.add(h[part], y[part])
    found = probe.weights()
    H = torch.cat((h, torch.ones(400, 1)), 1).double()
    assert torch.equal(with_bias(h), H)
    gram = H.T @ H
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(7, dtype=torch.float64)
    want = torch.linalg.inv(gram + ridge) @ H.T @ torch.nn.functional.one_hot(y, 4).double()
    torch.testing.assert_close(found, want)
    assert hits(H @ found, y)[0] > 350


def test_windows_lie_inside_the_split(tmp_path, trained):
    data = trained.config.data
    assert data.seq_len == 32

    class Ramp(TokenStream):
        def __init__(self, total):
            self.total = total

        def read(self, start, out):
            assert start >= 0
            assert start + len(out) <= self.total
            out[:] = range(start, start + len(out))

    def split(stream: TokenStream) -> Split:
        return Split(stream, ByteTokenizer(vocab_size=256), 32, 4 * 32, None, None)

    (short,) = sample_windows(split(Ramp(20)), 320)
    assert short["inputs"].shape == (1, 19)
    batches = list(sample_windows(split(Ramp(1000)), 320))
    assert [len(b["inputs"]) for b in batches] == [4, 4, 2]
    assert all(torch.equal(b["inputs"] + 1, b["targets"]) for b in batches)


@pytest.mark.parametrize("step", [1, 2])
def test_a_probe_is_fitted_on_training_text_and_scored_on_the_other(small, step):
    """After token x comes x + 1 in training, and x + step in validation: else all would be right."""
    torch.manual_seed(0)
    model = LanguageModelTask(resolve(small())).model
    moment = StepContext(ProgressClock(max_steps=1, max_time=None))

    class Data:
        def split(self, name: str) -> Split:
            ids = np.arange(640) * (1 if name == "train" else step) % 20
            return Split(TokenStream.of(ids), ByteTokenizer(vocab_size=256), 32, 128, None, None)

    found = probe(model, None, Data(), moment)["linear"]["top1"]
    assert found > 0.95 if step == 1 else found < 0.05


def test_a_run_reports_them_on_request(small, tmp_path):
    train(small("probe=true", "objective=lewm", run_dir=tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["probe"]
    assert found.keys() == {"head", "linear", "retrieval"}
    for accuracy in found.values():
        assert 0 <= accuracy["top1"] <= accuracy["top5"] <= accuracy["top10"] <= 1
    assert found["linear"]["top10"] > 0.05  # 400 tokens: chance is 0.025


def test_no_probe_unless_asked(trained):
    assert "probe" not in json.loads((trained.folder / "summary.json").read_text())


@pytest.mark.parametrize("average", ["null", "0.5"])
def test_the_probe_leaves_the_run_as_it_was(small, trained, tmp_path, average):
    from jepa_lm.model.checkpoint import read_checkpoint

    train(small("probe=true", f"average.decay={average}", run_dir=tmp_path / "run"))
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    plain = read_checkpoint(trained.checkpoint)["state_dict"]
    assert all(torch.equal(state[n], plain[n]) for n in plain)
