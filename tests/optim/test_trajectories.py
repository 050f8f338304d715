"""Twenty steps of the published training loops, against ours through the presets' own YAML.

The numbers were recorded from the five scripts' own main loops: float32 on one process, eight micro-batches
of 2 x 64 tokens a step, sizes cut down, and every warm-up, phase and warm-down crossed. Weights start from a
fill that depends on shapes alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from jepa_lm.commands import train as training
from jepa_lm.data.shards import ShardWriter
from jepa_lm.objective.views import SpanMask
from jepa_lm.training.module import LanguageModelTask
from tests.objective.test_vectors import LEWM_NAMES, TRUNK
from tests.runs import with_callback
from tests.tokenizers import published_bpe

pytestmark = pytest.mark.slow
FILES = sorted((Path(__file__).parent.parent / "vectors" / "trajectories").glob("*.json"))
MICRO_BATCHES, LENGTH = 8, 129
"""Micro-batches of a step; tokens of a micro-batch and the one after it."""
CE, WEIGHTS = {"1581_plain": 2e-4}, {"1581_plain": 2e-2}
"""Tolerances other than 3e-5 and 1e-3: #1581's gains start at a saddle, where rounding decides."""
BLOCK = {
    r"attn\.c_q": "attention.query", r"attn\.c_k": "attention.key", r"attn\.c_v": "attention.value",
    r"attn\.proj": "attention.out", r"attn\.q_gain": "attention.q_gain", r"mlp\.fc": "mlp.up",
    r"mlp\.proj": "mlp.down", r"^blocks\.": "model.backbone.blocks.", r"\.ssm\.": ".mixer.",
    r"^bigram\.embed": "model.bigram.table", r"^bigram\.proj": "model.bigram.expand",
    r"^bigram\.scale": "model.bigram.scale", r"^ve_shared\.embed": "model.value_embedding.table",
    r"^ve_shared\.proj": "model.value_embedding.expand", r"^ve_shared\.": "model.value_embedding.",
    r"^ve_layer_scales": "model.value_embedding.layer_scales",
    r"^vocab_bias": "model.logit_bias", r"^embed_proj_rev": "model.head.reduce",
}  # fmt: skip
BANKS = {
    "qo_bank": ("attention.query.weight", "attention.out.weight"),
    "kv_bank": ("attention.key.weight", "attention.value.weight"),
    "mlp_up_bank": ("mlp.up.weight",),
    "mlp_down_bank": ("mlp.down.weight",),
}
"""Tensors of #1243 that hold the matrices of all blocks."""


def matrix(rows: int, columns: int) -> torch.Tensor:
    """Return a full-rank matrix that depends on its shape alone."""
    i = torch.arange(1, rows + 1, dtype=torch.float64)[:, None]
    j = torch.arange(1, columns + 1, dtype=torch.float64)[None]
    v = torch.sin(12.9898 * i + 78.233 * j) * 43758.5453
    return (0.2 * (v - v.floor() - 0.5)).float()


def fill(name: str, p: torch.Tensor) -> torch.Tensor:
    if name.endswith("sigreg.directions"):
        columns = matrix(*p.shape)
        return columns / columns.norm(dim=0)
    if p.ndim == 0:
        return torch.tensor(0.5)
    if p.ndim == 1:
        return 1 + 0.1 * torch.sin(0.53 * torch.arange(len(p), dtype=torch.float32))
    return matrix(p.shape[0], p.shape[-1]).reshape(p.shape)


def stream(vocabulary: int, length: int) -> np.ndarray:
    i = np.arange(length, dtype=np.int64)
    return (7 * i * i // 3 + 5 * (i // 65) * i + 3 * i) % vocabulary


class Recorded(LanguageModelTask):
    """A task that starts from the fill and keeps the cross entropy of every micro-batch."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        for name, p in [*self.named_parameters(), *self.named_buffers()]:
            p.data.copy_(fill(name, p))
        self.ce: list[float] = []
        self.norms: dict[int, dict[str, float]] = {0: norms(self)}
        self.rates: list[tuple[float, ...]] = []

    def _losses(self, batch, step_context):
        found = super()._losses(batch, step_context)
        if self.training:
            self.ce.append(found[0].item())
        return found


class Keep(Callback):
    """Keeps the momentum, rate and loss weight that a step used, and the norms that it left."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        momentum = next(g["momentum"] for g in optimizer.param_groups if g["algorithm"] == "muon")
        scale = 0.0 if pl_module.objective is None else pl_module.objective.scale(pl_module.clock)
        pl_module.rates.append((momentum, trainer.lr_scheduler_configs[0].scheduler.factor, scale))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.ends_step(batch_idx):
            pl_module.norms[trainer.global_step] = norms(pl_module)


def norms(task) -> dict[str, float]:
    named = [*task.named_parameters(), *task.named_buffers()]
    return {n: p.norm().item() for n, p in named if p.is_floating_point()}


def ours(name: str) -> str:
    for known in (TRUNK, LEWM_NAMES):
        if name in known:
            return known[name]
    for pattern, replacement in BLOCK.items():
        name = re.sub(pattern, replacement, name)
    return name


def norm_of(found: dict[str, float], published: str, copy: str) -> float:
    """Return our norm of a published tensor; `copy` replaces `model.` for the tensors of a copy."""
    parts = BANKS.get(published)
    if parts is None:
        name = ours(published)
        return found[re.sub(r"^model\.", copy, name)]
    names = [n for n in found if n.startswith(f"{copy}backbone") and n.endswith(parts)]
    return sum(found[n] ** 2 for n in names) ** 0.5


@pytest.fixture
def recorded(compose, tmp_path, monkeypatch):
    """recorded(vectors) returns the task after its twenty steps."""

    def run(vectors: dict) -> Recorded:
        vocabulary, steps = vectors["vocabulary"], len(vectors["steps"])
        where = [f"data.path={tmp_path / 'shards'}", "data.train_shards=1"]
        (tmp_path / "shards").mkdir()
        for split in ("train", "val"):
            with ShardWriter(tmp_path / "shards" / f"fineweb_{split}_000000.bin") as shard:
                shard.write(stream(vocabulary, LENGTH * MICRO_BATCHES * (steps + 1)))
        if vocabulary == 1024:
            (tmp_path / "tokenizer.model").write_bytes(published_bpe())
            where.append(f"data.tokenizer.model={tmp_path / 'tokenizer.model'}")
        made: list[Recorded] = []

        def task(*given) -> Recorded:
            made.append(Recorded(*given))
            return made[0]

        monkeypatch.setattr(training, "LanguageModelTask", task)
        if vectors["spans"]:
            use_spans(monkeypatch)
        words = (*vectors["overrides"], *where, "trainer.limit_val_batches=1")
        with with_callback(Keep()):
            training.train(compose("train", *words))
        return made[0]

    return run


def use_spans(monkeypatch) -> None:
    """Use the spans of #1581's recording, counted over the micro-batches that draw any."""
    drawn = []

    def draw(self, shape, step_context, purpose, device):
        n = len(drawn)
        drawn.extend([n] * (device.type != "meta"))  # a check of shapes is not a micro-batch
        spans = [(3 + n % 5, 8 + n % 5), (16 + n % 7, 22 + n % 7), (40, 44 + n % 4)]
        return self.masks_of(shape[1], spans, device)

    monkeypatch.setattr(SpanMask, "draw", draw)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_published_loop_is_followed_step_by_step(recorded, file):
    vectors = json.loads(file.read_text())
    task, steps = recorded(vectors), vectors["steps"]
    for name, norm in vectors["start_norms"].items():
        if known(task, name):
            assert norm_of(task.norms[0], name, "model.") == pytest.approx(norm, rel=1e-6), name
    per_step = np.reshape(task.ce, (len(steps), MICRO_BATCHES)).mean(1)
    worst = {"ce": 0.0, "weights": 0.0}
    for got, (momentum, factor, scale), step in zip(per_step, task.rates, steps, strict=True):
        want = next(step[k] for k in ("ce_plus_z", "ce", "loss_logged") if k in step)
        worst["ce"] = max(worst["ce"], abs(got - want))
        assert momentum == pytest.approx(step["muon_momentum"]), step["step"]
        assert factor == pytest.approx(step["lr_factor"]), step["step"]
        if "loss_weight" in step:
            assert scale == pytest.approx(step["loss_weight"]), step["step"]
    for key, copy in (
        ("ema_norms_after_20", "averages.ema.model."),
        ("target_encoder_norms_after_20", "objective.target.encoder."),
    ):
        for name, norm in vectors.get(key, {}).items():
            if ours(name).startswith("model.") or name in BANKS:
                worst["weights"] = max(
                    worst["weights"], apart(norm_of(task.norms[20], name, copy), norm)
                )
    for step, weights in vectors["weight_norms"].items():
        for name, norm in weights.items():
            if known(task, name):
                worst["weights"] = max(
                    worst["weights"], apart(norm_of(task.norms[int(step)], name, "model."), norm)
                )
    print(file.stem, worst)
    assert worst["ce"] < CE.get(file.stem, 3e-5)
    assert worst["weights"] < WEIGHTS.get(file.stem, 1e-3)


def known(task, name: str) -> bool:
    """Return whether we have the tensor: a recording may hold untrained modules, absent here at weight 0."""
    return name in BANKS or ours(name) in task.norms[0]


def apart(got: float, want: float) -> float:
    return abs(got - want) / abs(want)
