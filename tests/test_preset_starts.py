"""Initial values of every class of tensors in the presets, at full width: standard deviation and maximum.

As published: orthogonal means singular values of 1, so a [R, C] matrix has a standard deviation of
1 / sqrt(max(R, C)); the framework's default is uniform below 1 / sqrt(fan in).
"""

from __future__ import annotations

import math
import re

import pytest
import torch

from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve

FEW = {
    "pr1243_jepardy": ("model.backbone.layers=4", "model.value_embedding.layers=[1]"),
    "pr832_byte_chunk": ("model.backbone.layers=4",),
    "pr1581_span_vicreg": ("model.backbone.layers=2",),
    "pr1196_llm_jepa": ("model.backbone.layers=2",),
    "pr903_lewm_bpe": ("model.backbone.layers=2",),
    "pr903_lewm_byte": ("model.backbone.layers=2",),
}
ZERO, ONE = (0.0, 0.0), (0.0, 1.0)


def normal(std: float):
    return std, None


def orthogonal(rows: int, columns: int):
    return 1 / math.sqrt(max(rows, columns)), None


def uniform(fan_in: int):
    bound = 1 / math.sqrt(fan_in)
    return bound / math.sqrt(3), bound


GAINS = {r"(attn|mlp|ssm)_scale": ONE, "skip_weights": ONE, r"resid_mix": (0.5, 1.0)}
ATTENTION = ("query", "key", "value")
START = {
    "pr1243_jepardy": {
        **GAINS, "q_gain": (0.0, 1.5), r"^model\.embedding\.table": normal(0.005), "smear": ZERO,
        r"query": orthogonal(512, 512), r"attention\.(key|value)": orthogonal(256, 512),
        r"mlp\.up": orthogonal(1536, 512), r"(attention\.out|mlp\.down)": ZERO,
        r"bigram\.table": ZERO, r"bigram\.expand": orthogonal(512, 128), r"bigram\.scale": (None, 0.05),
        r"value_embedding\.table": normal(0.01), r"value_embedding\.expand": orthogonal(256, 128),
        r"value_embedding\.scale": (None, 0.1), r"layer_scales": (None, 1.0),
        r"objective\.predictor": orthogonal(512, 512),
    },
    "pr832_byte_chunk": {
        **GAINS, "q_gain": (0.0, 1.5), r"^model\.embedding\.table": normal(0.005), "smear": ZERO,
        r"query": orthogonal(512, 512), r"attention\.(key|value)": orthogonal(256, 512),
        r"mlp\.up": orthogonal(1024, 512), r"(attention\.out|mlp\.down)": ZERO,
        # The published projection is zero and never moves; here it gets a start of its own width.
        r"bigram\.table": ZERO, r"bigram\.expand": orthogonal(512, 32), r"bigram\.scale": (None, 0.05),
        r"injector\.start": normal(0.02), r"project_in": uniform(512),
        r"(project_out|predict_in|predict_out)": uniform(256), r"injector\.inject": ZERO,
    },
    "pr1581_span_vicreg": {
        **GAINS, "q_gain": (0.0, 4.0), r"^model\.embedding\.table": normal(0.005),
        r"attention\.(query|key|value)": uniform(512), r"mlp\.up": uniform(512),
        r"(attention\.out|mlp\.down)": ZERO, r"bigram\.table": normal(0.01),
        r"view\.vector": ZERO, r"predictor\.up": uniform(512), r"predictor\.down": ZERO,
    },
    "pr1196_llm_jepa": {
        **GAINS, "q_gain": (0.0, 1.5), r"^model\.embedding\.table": normal(0.005),
        r"attention\.(query|key|value)": uniform(512), r"mlp\.up": uniform(512),
        r"(attention\.out|mlp\.down)": ZERO,
        r"predictor\.up": uniform(512), r"predictor\.down": uniform(1024),
    },
}  # fmt: skip


def lewm(dim: int, factor: int, multiple: int):
    return {
        **GAINS, r"^model\.embedding\.table": normal(0.02), r"embedding\.expand": uniform(factor),
        r"head\.reduce": uniform(dim), "logit_bias": ZERO, r"in_proj": uniform(dim),
        r"out_proj": uniform(dim), r"conv1d": uniform(4), r"mixer\.norm": ONE, r"mixer\.D$": ONE,
        r"A_log": (None, math.log(16)), r"dt_bias": (None, None),
        r"backbone.*mlp\.up": uniform(dim), r"backbone.*mlp\.down": ZERO,
        r"projector\.linear": uniform(dim), r"parts\.out\.linear": uniform(dim),
        r"parts\.mlp\.up": uniform(dim), r"parts\.mlp\.down": ZERO,
    }  # fmt: skip


START |= {"pr903_lewm_bpe": lewm(640, 336, 4), "pr903_lewm_byte": lewm(768, 256, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("preset", START)
def test_every_tensor_starts_as_published(compose, preset):
    torch.manual_seed(0)
    task = LanguageModelTask(resolve(compose("train", f"experiment={preset}", *FEW[preset])))
    left = []
    for name, p in task.named_parameters():
        fitting = [how for pattern, how in START[preset].items() if re.search(pattern, name)]
        if len(fitting) != 1:
            left.append((name, len(fitting)))
            continue
        (std, largest), values = fitting[0], p.detach().double()
        if std is not None:
            got = values.std(correction=0).item() if values.numel() > 1 else 0.0
            assert got == pytest.approx(
                std, rel=0.05 if values.numel() > 10_000 else 0.3, abs=1e-9
            ), name
        if largest is not None:
            top = values.abs().max().item()
            assert top <= largest * 1.0001, name
            assert top >= 0.9 * largest, name
    assert left == []
