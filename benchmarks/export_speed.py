"""Claim 11: time of an export against its slowest compressor alone.

The weights are drawn with the distribution of trained ones. The time covers everything from the weights to
the file: packing, hashing, four codecs, writing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Claim, at_most, interleaved
from benchmarks.models import drawn_model
from jepa_lm.artifact.codecs import COMPRESSORS, compress
from jepa_lm.artifact.compression import compress_best
from jepa_lm.artifact.writing import pack_model, to_streams, write_artifact

SIZES = ("model.dim=320", "model.backbone.heads=5", "model.backbone.kv_heads=1")
META: dict[str, Any] = {"model": {}, "data": {}}
TARGET, ROUNDS, SLOWEST = 1.10, 3, "brotli"


def claims() -> Iterator[Claim]:
    """Yield the claim."""
    model, formats = drawn_model(*SIZES, "quantization=int6")
    raw = to_streams(pack_model(model, formats), META, "single")[0]
    found = compress_best([raw], list(COMPRESSORS))[0]
    alone = {codec: compress(codec, raw) for codec in COMPRESSORS}
    assert found.sizes == {codec: len(packed) for codec, packed in alone.items()}
    with tempfile.TemporaryDirectory() as folder:

        def export() -> None:
            packed = pack_model(model, formats)
            write_artifact(Path(folder), packed, META, streams="single", codecs=list(COMPRESSORS))

        timings = interleaved(
            lambda: compress(SLOWEST, raw),
            rounds=ROUNDS,
            export=export,
            **{
                codec: lambda codec=codec: compress(codec, raw)
                for codec in ("lzma", "zstd", "zlib")
            },
        )
    yield at_most(
        "export/wall",
        timings.median("export") / timings.reference,
        unit="x the slowest compressor",
        target=TARGET,
        limit=1.0,
        spread=timings.spread,
        details={
            "weights": sum(p.numel() for p in model.parameters()),
            "threads": torch.get_num_threads(),
            f"{SLOWEST}_s": timings.reference,
            **{f"{n}_s": timings.median(n) for n in ("export", "lzma", "zstd", "zlib")},
        },
    )
