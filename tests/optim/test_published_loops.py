"""Published behaviour without recordings, against plain loops: a frozen predictor, ghost steps, a clock."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jepa_lm.data.token_data import TokenData
from jepa_lm.model.layers import rms_norm
from jepa_lm.optim.newton_schulz import orthogonalise_reference
from jepa_lm.run import train
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import build, resolve
from tests.runs import fake_quantized, state

EXACT = ("trainer.max_time=null", "trainer.precision=32-true", "compile=false", "sample=false",
         "optimizer.groups.matrices.ns_dtype=float32", "jepa.diagnostics.every=1000000",
         "trainer.limit_val_batches=1", "checkpoint.every_n_steps=null", "data.order=stream",
         "data.seq_len=32", "data.batch_tokens=256", "data.tokenizer.vocab_size=400", "model.dim=64",
         "average.decay=null", "eval.stride=16")  # fmt: skip
FROZEN = ("experiment=pr1243_jepardy", "data=text", "model.backbone.layers=4", "model.backbone.heads=4",
          "model.backbone.kv_heads=2", "model.backbone.rope_dims=8", "model.bigram.buckets=128",
          "model.bigram.width=16", "model.value_embedding.width=16", "model.value_embedding.layers=[2,3]",
          "model.backbone.xsa_last=2", "jepa.predictor.start=default", "jepa.predictor.output_start=null",
          "optimizer.freeze=[objective.predictor.*]", "optimizer.schedule.lr.steps=3", "trainer.max_steps=6",
          "quantization.training.lr_below=null")  # fmt: skip
GHOSTS = ("experiment=pr903_lewm_bpe", "data=text", "model.backbone.layers=2", "model.backbone.head_dim=16",
          "model.backbone.state_dim=8", "model.embedding.factor_dim=32", "model.kernel=torch",
          "jepa.weight=0", "optimizer.ghost_steps=3", "trainer.max_steps=2",
          "optimizer.schedule.lr.fraction=0")  # fmt: skip


class Loop:
    """AdamW and Muon as their formulas read, on one parameter at a time."""

    def __init__(self, muon: dict, adamw: dict[str, dict]) -> None:
        self.muon, self.adamw, self.kept = muon, adamw, {}

    def step(self, named: dict[str, torch.Tensor], *, momentum: float, factor: float) -> None:
        for name, p in named.items():
            own = self.adamw.get(name)
            if own is None:
                self._muon(name, p, momentum, factor)
            else:
                self._adamw(name, p, factor * own["lr"], own["decay"])
            p.grad = None

    def _muon(self, name, p, momentum, factor) -> None:
        buffer = self.kept.setdefault(name, torch.zeros_like(p))
        buffer.mul_(momentum).add_(p.grad)
        update = p.grad + momentum * buffer
        if self.muon["row_normalize"]:
            update = rms_norm(update)
        update = orthogonalise_reference(update, steps=self.muon["steps"], dtype=torch.float32)
        lr = factor * self.muon["lr"]
        scale = math.sqrt(max(1, p.shape[0] / p.shape[1]))
        p.data = p.data * (1 - lr * self.muon["decay"]) - lr * scale * update

    def _adamw(self, name, p, lr, decay, betas=(0.9, 0.95), eps=1e-8) -> None:
        first, second, steps = self.kept.setdefault(
            name, [torch.zeros_like(p), torch.zeros_like(p), 0]
        )
        first.lerp_(p.grad, 1 - betas[0])
        second.lerp_(p.grad.square(), 1 - betas[1])
        self.kept[name][2] = steps = steps + 1
        corrected = first / (1 - betas[0] ** steps), second / (1 - betas[1] ** steps)
        p.data = p.data * (1 - lr * decay) - lr * corrected[0] / (corrected[1].sqrt() + eps)


def start(config) -> tuple[LanguageModelTask, TokenData]:
    """Return a task with the same start as a run's, and its data."""
    config = resolve(config)
    torch.manual_seed(config["seed"])
    task = LanguageModelTask(
        config, ProgressClock(max_steps=config["trainer"]["max_steps"], max_time=None)
    )
    data = build("data", config["data"])
    data.prepare_data()
    data.setup()
    return task, data


def batches_of(data: TokenData):
    """Yield batches of consecutive tokens of the stream, without a loader."""
    tokens = np.empty(257, dtype=np.int64)
    for first in itertools.count(step=257):
        data.streams["train"].read(first, tokens)
        ids = torch.from_numpy(tokens.copy())
        yield {"inputs": ids[:-1].view(8, 32), "targets": ids[1:].view(8, 32)}


@pytest.fixture
def exact(compose, small_text, tmp_path):
    def make(*words):
        return compose("train", *words, *EXACT, f"data.path={small_text}", run_dir=tmp_path / "run")

    return make


def test_1243_as_published_has_a_frozen_random_predictor_whose_gradient_reaches_the_trunk(
    exact, tmp_path
):
    task, data = start(exact(*FROZEN))
    model, predictor = task.model, task.objective.predictor
    named = dict(model.named_parameters())
    small = dict(lr=0.025, decay=0.04)
    adamw = {
        n: small
        for n, p in named.items()
        if p.ndim < 2 or n.endswith(("skip_weights", "resid_mix"))
    }
    adamw |= dict.fromkeys(("bigram.expand.weight", "value_embedding.expand.weight"), small)
    adamw |= {n: dict(lr=0.035, decay=0.04) for n in named if n.endswith("table.weight")}
    loop = Loop(dict(lr=0.025, decay=0.04, steps=5, row_normalize=False), adamw)
    batches, alone = batches_of(data), []
    for step in range(6):
        batch = next(batches)
        embedded = model.embed(batch["inputs"])
        h = model.encode(embedded).final
        ends = h[:, 7::8][:, :-1]
        predicted = predictor.down(F.relu(predictor.up(rms_norm(ends))).square())
        tokens = model.embedding.table.weight[batch["inputs"]]
        patches = tokens.reshape(*h.shape[:1], -1, 8, 64).mean(2)[:, 1:]
        wanted = F.normalize(rms_norm(patches).detach(), dim=-1)
        distance = (F.normalize(predicted, dim=-1) - wanted).square().mean()
        spread = F.relu(0.5 - predicted.flatten(0, 1).std(0, unbiased=False)).mean()
        jepa = 0.1 * (distance + 0.02 * spread)
        alone.append(
            torch.autograd.grad(jepa, named["embedding.table.weight"], retain_graph=True)[0].norm()
        )
        ce = F.cross_entropy(model.logits(h).flatten(0, 1), batch["targets"].flatten())
        (ce + jepa).backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 0.3)
        loop.step(named, momentum=0.92 + 0.07 * step / 1500, factor=min(1.0, (6 - step) / 3))
    assert min(alone) > 1e-5
    train(exact(*FROZEN))
    close(state(tmp_path / "run"), named)


def test_ghost_steps_are_plain_steps_of_full_weights_at_one_momentum_without_a_clip(
    exact, tmp_path
):
    task, data = start(exact(*GHOSTS))
    model = task.model
    named = dict(model.named_parameters())
    before = {n: p.detach().clone() for n, p in named.items()}
    matrices = {
        n
        for n, p in named.items()
        if p.ndim == 2 and not n.endswith(("table.weight", "skip_weights", "resid_mix"))
    }
    loop = Loop(dict(lr=0.02, decay=0.04, steps=3, row_normalize=True),
                {n: dict(lr=0.01, decay=0.05) for n in named if n not in matrices})  # fmt: skip

    def backward(batch) -> None:
        loss, _, _ = model.cross_entropy(
            model.encode(model.embed(batch["inputs"])).final, batch["targets"], 1e-4
        )
        loss.backward()

    batches = batches_of(data)
    for _ in range(3):
        backward(next(batches))
        loop.step(named, momentum=0.95, factor=1.0)
    for name, p in named.items():
        p.data = before[name].clone()
        if name not in matrices:
            loop.kept[name][2] = 0
    batches = batches_of(data)
    weights = fake_quantized(task)
    for step in range(2):
        weights.swap_in()
        backward(next(batches))
        weights.swap_out()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        loop.step(named, momentum=0.85 + 0.1 * step / 500, factor=1.0)
    train(exact(*GHOSTS))
    close(state(tmp_path / "run"), named)


def close(got: dict[str, torch.Tensor], named: dict[str, torch.Tensor]) -> None:
    for name, want in named.items():
        apart = (got[f"model.{name}"] - want).norm() / want.norm().clamp(min=1e-12)
        assert apart < 2e-4, (name, apart)


def test_832_lowers_its_rate_by_the_wall_clock_and_its_phases_follow_the_steps(compose):
    """9,000 steps in 568 s of 600: the run ends at a factor of .17."""
    config = resolve(compose("train", "experiment=pr832_byte_chunk"))
    lr = build("optimizer", config["optimizer"]).lr
    objective = build("jepa", config["jepa"])
    seconds = [0.0]
    clock = ProgressClock(max_steps=9000, max_time=600, now=lambda: seconds[0])
    clock.start()
    pace = 568 / 9000
    for step in range(9000):
        left, warmdown = 600 - step * pace, 3000 * pace
        assert lr(clock) == pytest.approx(min(1.0, left / warmdown) if step else 1.0)
        done = step / 9000
        ramp = 0.0 if done < 0.3 or done >= 0.8 else (done - 0.3) / 0.5
        assert objective.scale(clock) == pytest.approx(0.001 * ramp, abs=1e-9)
        seconds[0] += pace
        clock.advance()
    assert clock.done
    assert lr(clock) == pytest.approx(0.17, abs=0.003)
