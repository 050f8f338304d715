"""How every tensor of each preset is stored, at its full size: the committed table."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest
import torch

from jepa_lm.utils.config import build, resolve

ATTENTION = {f"block.attention.{part}.weight" for part in ("query", "key", "value", "out")}
MLP = {"block.mlp.up.weight", "block.mlp.down.weight"}
GAINS = {
    "block.attention.q_gain",
    "block.attn_scale",
    "block.mlp_scale",
    "block.resid_mix",
    "backbone.skip_weights",
}
XOR_BIGRAM = {"bigram.expand.weight", "bigram.scale"}
TABLES = {"embedding.table.weight", "bigram.table.weight"}
MAMBA2 = {
    "int4, bfloat16": MLP
    | {"block.mixer.in_proj.weight", "block.mixer.out_proj.weight"}
    | {"embedding.expand.weight", "head.reduce.weight"},
    "float8": {"embedding.table.weight", "block.resid_mix", "backbone.skip_weights"},
    "bfloat16": {f"block.mixer.{part}" for part in ("A_log", "D", "dt_bias", "norm.weight")}
    | {"block.mixer.conv1d.weight", "block.mixer.conv1d.bias"}
    | {"block.mlp_scale", "block.ssm_scale", "logit_bias"},
}
FLOOR6, FLOOR8 = "int6, float16, at least 1/31", "int8, float16, at least 1/127"
STORED = {
    "pr1581_span_vicreg": {FLOOR6: ATTENTION | MLP | TABLES, "float32": GAINS},
    "pr1243_jepardy": {
        FLOOR6: ATTENTION | MLP | TABLES | {"value_embedding.table.weight"},
        "float16": GAINS
        | XOR_BIGRAM
        | {"smear.gate", "value_embedding.expand.weight", "value_embedding.scale"}
        | {"value_embedding.layer_scales"},
    },
    "pr832_byte_chunk": {
        FLOOR6: ATTENTION | MLP,
        FLOOR8: TABLES | {"injector.inject.weight", "injector.project_in.weight"},
        "float16": GAINS
        | XOR_BIGRAM
        | {"smear.gate", "injector.start", "injector.project_out.weight"}
        | {"injector.predict_in.weight", "injector.predict_out.weight"},
    },
    "pr1196_llm_jepa": {
        FLOOR8: ATTENTION | MLP | {"embedding.table.weight"},
        "float32": GAINS,
    },
    "pr903_lewm_bpe": MAMBA2,
    "pr903_lewm_byte": MAMBA2,
}
"""Tensors by preset and storage format; tensors of all blocks share one entry."""


def in_words(spec: dict) -> str:
    """Describe a format's settings in a few words, without its lower limit, which the file does not hold."""
    if spec["kind"] == "cast":
        return spec["dtype"]
    name = f"int{spec['bits']}" if spec["kind"] == "int" else spec["kind"]
    return ", ".join(filter(None, (name, spec["scale_dtype"])))


@pytest.mark.parametrize("preset", STORED)
def test_every_tensor_is_stored_as_its_system_stores_it(compose, preset):
    config = resolve(compose("train", f"experiment={preset}"))
    with torch.device("meta"):
        model = build("model", config["model"])
    found = defaultdict(set)
    for name, kind in build("quantization", config["quantization"]).assign(model).items():
        floor = getattr(kind, "min_clip", None)
        words = in_words(kind.spec()) + (f", at least {floor:g}/{kind.limit}" if floor else "")
        short = re.sub(r"\.\d+$", "", re.sub(r"backbone\.blocks\.\d+", "block", name))
        found[words].add(short)
    assert found == STORED[preset]
