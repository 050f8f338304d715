"""Bytes of each published system's file at full size and, separately, of its code.

Matrices and tables are drawn from N(0, 0.2) one tensor at a time, gains and biases are 1; nothing is trained.
Normal weights have the largest entropy for their standard deviation, and 0.2 gives about the bits of the
published files. The code is reported in two parts: training, which the challenge counts, and loading and
scoring.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.measure import Claim, at_most, report
from benchmarks.models import compose
from jepa_lm.artifact.codecs import compress
from jepa_lm.artifact.prediction import entropy_of_bytes
from jepa_lm.artifact.size import CAP_BYTES, code_bytes, inference_files, minified_bytes
from jepa_lm.artifact.writing import Packed, to_streams
from jepa_lm.model.roles import parameter_roles
from jepa_lm.utils.config import build, resolve

PUBLISHED = {
    "pr1243_jepardy": 15.88e6,
    "pr832_byte_chunk": 14.2e6,
    "pr903_lewm_bpe": 15.42e6,
    "pr903_lewm_byte": 15.86e6,
    "pr1581_span_vicreg": None,
    "pr1196_llm_jepa": None,
}
"""Bytes of the artifact as reported by its authors (the mean if there are several)."""
MUST_FIT = ("pr1243_jepardy", "pr832_byte_chunk", "pr903_lewm_bpe", "pr903_lewm_byte")
TARGET = 15_900_000
STD = 0.2
META: dict[str, Any] = {"data": {}}
CODEC = "ans"
"""The codec with the smallest files for independent values, and the fastest."""


def claims() -> Iterator[Claim]:
    """Yield a claim for each preset."""
    for preset, published in PUBLISHED.items():
        packed, model = stored(preset)
        size = len(compress(CODEC, to_streams(packed, META | {"model": model}, "single")[0]))
        entropy = sum(
            n * bits / 8 for p in packed.parts.values() for n, bits in entropy_of_bytes(p)
        )
        weights = sum(math.prod(shape) for shape in packed.shapes.values())
        loads = minified_bytes(inference_files(model))
        details = {
            "weights": weights,
            "over_the_entropy": size / entropy,
            "bits_per_weight": 8 * size / weights,
            "published_bits": None if published is None else 8 * published / weights,
            "code_that_trains": code_bytes(),
            "code_that_trains_minified": minified_bytes(),
            "code_that_loads_and_scores": loads,
            "file_and_code_that_loads": size + loads,
            "cap": CAP_BYTES,
        }
        about: dict[str, Any] = dict(unit="bytes", limit=None, spread=0.0, details=details)
        name = f"published_sizes/{preset}"
        if preset in MUST_FIT:
            yield at_most(name, size, target=TARGET, **about)
        else:
            yield report(name, size, **about)


def stored(preset: str) -> tuple[Packed, dict[str, Any]]:
    """Return a preset's drawn model, quantized and packed, and the model's config."""
    config = resolve(compose(f"experiment={preset}", "paths.run_dir=unused"))
    with torch.device("meta"):
        model = build("model", config["model"])
    formats = build("quantization", config["quantization"]).assign(model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    parts = {}
    for name, role in parameter_roles(model).items():
        weight = torch.ones(shapes[name])
        if role != "vector":
            weight.normal_(0, STD, generator=generator)
        parts[name] = formats[name].pack(weight)
    return Packed(shapes, formats, parts), config["model"]
