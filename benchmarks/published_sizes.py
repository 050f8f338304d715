"""Bytes against entropy per weight for each published system, and where it meets the cap.

Weights of the right shapes and scales are drawn from Student's t: with fewer degrees of freedom a row's
largest value is further out, its integers are smaller, and a weight takes fewer bits. The bits of a published
artifact say where on this line it lies. No training, no text: this is a claim about shapes, and about the
format, that its bytes are those of the entropy (measured at the normal end of the line).
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Claim, at_most
from benchmarks.models import drawn_model
from jepa_lm.artifact.codecs import compress
from jepa_lm.artifact.prediction import NORMAL, entropy_of_bytes
from jepa_lm.artifact.size import CAP_BYTES, code_bytes
from jepa_lm.artifact.writing import pack_model, to_streams

PUBLISHED = {
    "pr903_lewm_bpe": 15.42e6,
    "pr1243_jepardy": 15.88e6,
    "pr832_byte_chunk": 14.2e6,
    "pr1581_span_vicreg": None,
    "pr903_lewm_byte": 15.86e6,
    "pr1196_llm_jepa": None,
}
"""Bytes of the artifact as its authors report them (means where there are several)."""
DEGREES = (4.0, 8.0, NORMAL)
TARGET = 1.03
"""Bytes by zstd alone over those of the entropy. Brotli comes closer and takes a minute for each point."""
META = {"model": {}, "data": {}}
CODEC = "zstd"


def claims() -> Iterator[Claim]:
    """One for each preset."""
    for preset, published in PUBLISHED.items():
        line = []
        for degrees in DEGREES:
            model, formats = drawn_model(f"experiment={preset}", degrees=degrees)
            packed = [
                (n, each)
                for name, p in model.named_parameters()
                for n, each in entropy_of_bytes(p.detach(), formats[name])
            ]
            line.append(sum(n * each / 8 for n, each in packed))
        weights = sum(p.numel() for p in model.parameters())
        raw = to_streams(pack_model(model, formats), META, "single")[0]
        size = len(compress(CODEC, raw))
        yield at_most(
            f"published_sizes/{preset}",
            size / line[-1],
            unit="x the bytes of the entropy",
            target=TARGET,
            limit=1.0,
            spread=0.0,
            details={
                "weights": weights,
                "line": [f"{8 * n / weights:.3f} bits a weight, {n / 1e6:.2f} MB" for n in line],
                "compressed_MB": size / 1e6,
                "published_bits": None if published is None else 8 * published / weights,
                "cap_bits": 8 * (CAP_BYTES - code_bytes()) / weights,
                "cap_bits_without_code": 8 * CAP_BYTES / weights,
            },
        )
