"""What a step of a run would take on a GPU that is not there, for `describe=true describe_for=h100`.

    step = traffic / bandwidth + FLOPs of products / rate + FLOPs of attention / rate

A floor rather than a forecast: it has no gaps between kernels, no optimizer and no exchange between GPUs.
The six published presets have been traced (`python -m benchmarks trace`); their figures are in traced.json.
For other configs the same figures are counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jepa_lm.model.mamba2 import Mamba2Mixer
from jepa_lm.model.ssd_triton import triton_ssd
from jepa_lm.objective.auxiliary_loss import main_needs
from jepa_lm.objective.step_context import StepContext
from jepa_lm.objective.teacher import OpenTeacher
from jepa_lm.training.flops import (
    FEWEST_ROWS,
    CountAttention,
    count_parameters,
    flops_per_token,
    on_meta,
    outline,
    weighted,
)
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.former_names import first

TABLE = Path(__file__).with_name("traced.json")
BYTES = 2
"""Of most values in a step with bfloat16 products and a bfloat16 stream."""
KEPT, MOVED = 0.78, 3.6
"""Bytes that a compiled step keeps, and reads and writes, for each byte that autograd would keep."""
GPUS = 8
"""The published steps are divided among this many."""


@dataclass(frozen=True)
class Card:
    """Rates of a GPU.

    Args:
        bandwidth: of kernels that read and write memory, TB/s.
        products, attention: bfloat16 TFLOP/s at the published shapes. peak: TFLOP/s on paper.
    """

    bandwidth: float
    products: float
    attention: float
    peak: float

    def milliseconds(self, row: Mapping[str, Any]) -> float:
        """Return the time of a step from its `traffic_gb`, `product_tflop` and `attention_tflop`."""
        arithmetic = row["product_tflop"] / self.products + row["attention_tflop"] / self.attention
        return row["traffic_gb"] / self.bandwidth + 1000 * arithmetic


CARDS = {
    "h100": Card(bandwidth=2.7, products=580.0, attention=370.0, peak=989.0),
    "h200": Card(bandwidth=3.0, products=580.0, attention=370.0, peak=989.0),
}


def table() -> dict[str, dict[str, Any]]:
    """Return the traced figures by preset."""
    found: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def tokens_of_a_gpu(config: Mapping[str, Any]) -> int:
    """Return the tokens of a step that one GPU out of eight gets."""
    return int(config["data"]["batch_tokens"]) // GPUS


def shapes_hash(config: Mapping[str, Any]) -> str:
    """Return a hash that is equal for resolved configs whose steps have the same operations and shapes."""
    data, freeze = config["data"], config["optimizer"]["freeze"]
    jepa, tokens = (_without_diagnostics(config.get(node, {})) for node in ("jepa", "tokens"))
    decides = first(
        [
            config["model"],
            jepa,
            *([tokens] if "_target_" in tokens else ()),
            data["seq_len"],
            data["batch_tokens"],
            freeze,
        ]
    )
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _without_diagnostics(loss: Mapping[str, Any]) -> dict[str, Any]:
    """Return a loss without what is measured between steps."""
    return {key: value for key, value in loss.items() if key != "diagnostics"}


def estimate(task: LanguageModelTask, card: str) -> dict[str, Any]:
    """Estimate a step of a run on one of eight such GPUs, each with an eighth of the step at once.

    Returns:
        `gpu`; `basis`, how the figures were found: `traced` or `counted`; `step_ms`; `memory_gb` of a
        compiled run: weights, gradients, optimizer state, averages, and what is kept for the backward pass;
        `mfu_bound`, the share of the GPU's peak that the FLOPs of the model and its objective would use at
        that time; `tokens_in_600_s` on all eight.
    """
    rates, config = CARDS[card], task.config
    traced = {row["hash"]: row for row in table().values()}.get(shapes_hash(config))
    row = traced or count(task)
    tokens, ms = tokens_of_a_gpu(config), rates.milliseconds(row)
    tflop = tokens * sum(flops_per_token(task).values()) / 1e12
    return {
        "gpu": card,
        "basis": "counted" if traced is None else "traced",
        "step_ms": round(ms, 1),
        "memory_gb": round(row["saved_gb"] + state_bytes(task) / 1e9, 1),
        "mfu_bound": round(tflop / (ms / 1000) / rates.peak, 3),
        "tokens_in_600_s": int(600_000 / ms * config["data"]["batch_tokens"]),
    }


def state_bytes(task: LanguageModelTask) -> int:
    """Return the bytes of weights, gradients, optimizer moments and averages of the weights, in float32."""
    return checkpoint_bytes(task) + 4 * sum(p.numel() for p in task.parameters() if p.requires_grad)


def checkpoint_bytes(task: LanguageModelTask) -> int:
    """Return the bytes of the tensors in a checkpoint: weights, optimizer moments, averages, in float32."""
    optimizer, _ = task.recipe.configure(task, task.clock)
    moments = sum(
        p.numel() * (1 if group["algorithm"] == "muon" else 2)
        for group in optimizer.param_groups
        for p in group["params"]
    )
    averaged = (task.averages.decay is not None) + bool(task.config["average"]["swa"])
    return 4 * (count_parameters(task) + moments + averaged * count_parameters(task.model))


def checkpoint_bytes_of(config: Mapping[str, Any], open_teacher: OpenTeacher) -> int:
    """Return `checkpoint_bytes` of a run with this resolved config."""
    return checkpoint_bytes(outline(config, open_teacher))


def count(task: LanguageModelTask) -> dict[str, float]:
    """Count, on the meta device, what a trace would find in the step of one GPU.

    Autograd keeps more for the backward pass than a compiled step, which computes some of it again, and
    what a step moves grows with what it keeps. `KEPT` and `MOVED` are these ratios, in the middle of the
    traced table: for the six presets `saved_gb` comes out at most 16 % off, `traffic_gb` 23 %, and the time
    10 %; transformers come out too slow, Mamba-2 too fast.
    """
    seq_len = task.config["data"]["seq_len"]
    rows = max(FEWEST_ROWS, tokens_of_a_gpu(task.config) // seq_len)
    with FlopCounterMode(display=False) as products, CountAttention() as attention:
        loss, values = _loss_and_kept(task, rows)
        loss.backward()
    kept = BYTES * values / 1e9
    return {
        "saved_gb": KEPT * kept,
        "traffic_gb": MOVED * kept,
        "product_tflop": products.get_total_flops() / 1e12,
        # FlashAttention computes the scores again in the backward pass: 7 products in place of 6.
        "attention_tflop": 7 / 6 * attention.total[0] / 1e12,
    }


def _loss_and_kept(task: LanguageModelTask, rows: int) -> tuple[Tensor, int]:
    """Return the loss of a step on the meta device, and how many values autograd keeps beside weights."""
    config, model, objectives = task.config, on_meta(task.model), weighted(task)
    tokens = torch.zeros(rows, config["data"]["seq_len"], dtype=torch.long, device="meta")
    if config["model"].get("kernel") != "torch":
        for module in model.modules():
            if isinstance(module, Mamba2Mixer):  # the kernel of a GPU keeps less
                module._scan = triton_ssd  # type: ignore[method-assign]
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        main = model.encode(model.embed(tokens), *main_needs(model, objectives.values()))
        loss = model.cross_entropy(main.final, tokens, config["z_loss_weight"]).loss
        step_context = StepContext.at_start()  # one for all: losses may share a pass
        for objective in objectives.values():
            loss = loss + objective(model, objective.stand_in(tokens), main, step_context)
    return loss, sum(x.untyped_storage().nbytes() // x.element_size() for x in kept.values())
