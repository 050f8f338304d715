"""Predict the size of an artifact from the formats of its tensors and a prior over trained weights.

Weights are drawn from a prior measured on trained models and packed in their formats; the prediction is the
entropy of the bytes plus a small overhead per codec. docs/log.md gives its error. The scale of the weights
matters where quantization scales have a floor, or float8 has no scale: doubling it costs one bit more.
Legend: R rows, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa_lm.artifact.layout import to_planes
from jepa_lm.model.roles import parameter_roles
from jepa_lm.quantization.formats import Format, Parts, as_matrix
from jepa_lm.quantization.packing import entropy

DRAWN = 1 << 16
"""Maximum number of values drawn per tensor."""
OVERHEAD = {"brotli": 0.0, "ans": 0.02, "zstd": 0.02, "lzma": 0.12, "zlib": 0.3}
"""Bits per byte that a codec needs beyond the entropy of the tensor (measured). Brotli needs 0.04 more for
independent values, but makes up for it because rows of trained tensors differ."""
NORMAL = 1e6
"""Degrees of freedom at which Student's t is close enough to the normal distribution."""
HEADER_BYTES = 2000
TENSOR_BYTES = 18
"""Compressed bytes of the metadata: fixed part, and per tensor (measured)."""


@dataclass(frozen=True)
class Prior:
    """Prior over one kind of trained weights: Student's t, with a log-normal scale per row."""

    match: str
    """Role or name pattern."""
    degrees: float
    """Degrees of freedom; `NORMAL` gives the normal distribution."""
    spread: float
    """Standard deviation of the logarithm of a row's scale."""
    std: float
    """Standard deviation of the values. It grows with training; for matrices it is inferred from the bits
    per weight of the published files."""
    around_one: bool = False
    """True if values lie around one, as gains and scales do; else around zero."""


PRIORS = (
    Prior("*.mlp.down.weight", degrees=9.0, spread=0.05, std=0.2),
    Prior("matrix", degrees=60.0, spread=0.12, std=0.2),
    Prior("embedding", degrees=NORMAL, spread=0.4, std=0.4),
    Prior("*", degrees=NORMAL, spread=0.0, std=0.1, around_one=True),
)
"""The first match applies. Measured on demo models after 150 s of Muon and AdamW (docs/log.md)."""


def predict(
    model: nn.Module,
    formats: Mapping[str, Format],
    codecs: Sequence[str],
    *,
    trained: bool = False,
) -> dict[str, Any]:
    """Predict the bytes of the artifact.

    Args:
        trained: take the scale of each tensor, and the share of unused (all-zero) rows, from this model's
            weights; else from the prior.

    Returns:
        `bytes` with the best codec, `compressors`: bytes by codec, and `formats`: by format name, the number
        of values and the bits per value.
    """
    roles, rng = parameter_roles(model), np.random.default_rng(0)
    bits: dict[str, float] = defaultdict(float)
    values: dict[str, int] = defaultdict(int)
    sizes = dict.fromkeys(codecs, float(HEADER_BYTES))
    for name, parameter in model.named_parameters():
        std, used = _size(parameter) if trained else (None, 1.0)
        kind, drawn = formats[name], draw(name, roles[name], parameter.shape, rng, std)
        if drawn.ndim > 1:
            drawn[round(used * len(drawn)) :] = 0
        more = parameter.numel() / drawn.numel()
        values[kind.name] += parameter.numel()
        for codec in codecs:
            sizes[codec] += TENSOR_BYTES
        for count, each in entropy_of_bytes(kind.pack(drawn)):
            bits[kind.name] += more * count * each
            for codec in codecs:
                sizes[codec] += more * count * min(8.0, each + OVERHEAD[codec]) / 8
    found = {codec: round(size) for codec, size in sizes.items()}
    return {
        "bytes": min(found.values()),
        "compressors": found,
        "formats": {
            kind: {"values": values[kind], "bits_per_value": bits[kind] / values[kind]}
            for kind in values
        },
    }


def draw(
    name: str,
    role: str,
    shape: Sequence[int],
    rng: np.random.Generator,
    std: float | None = None,
) -> Tensor:
    """Draw rows of a tensor of this shape from the prior: [R', C...], or a whole vector.

    Args:
        std: standard deviation of values around zero, None for the prior's.
    """
    prior = next(p for p in PRIORS if p.match == role or fnmatchcase(name, p.match))
    rows, columns = (1, shape) if len(shape) < 2 else (shape[0], shape[1:])
    C = int(np.prod(columns))
    rows = min(rows, -(-DRAWN // C))
    w = rng.standard_t(prior.degrees, (rows, C)) * np.exp(
        prior.spread * rng.standard_normal((rows, 1))
    )
    w *= (1 - 2 / prior.degrees) ** 0.5 * np.exp(-(prior.spread**2))  # standard deviation is now 1
    w = 1 + prior.std * w if prior.around_one else (prior.std if std is None else std) * w
    return torch.from_numpy(w).float().view(shape if len(shape) < 2 else (rows, *columns))


def _size(parameter: Tensor) -> tuple[float, float]:
    """Return the RMS of the values in rows that are not all zero, and the share of such rows."""
    rows = as_matrix(parameter.detach().float())
    used = rows.any(1)
    size = rows[used].square().mean().sqrt().item() if used.any() else 0.0
    return max(size, 1e-6), used.float().mean().item()


def entropy_of_bytes(parts: Parts) -> list[tuple[int, float]]:
    """Return for each byte plane of a tensor's parts the number of bytes and their entropy in bits."""
    found = []
    for tensor in parts.values():
        planes = to_planes(tensor.reshape(-1)).numpy()
        found += [(len(plane), entropy(plane)) for plane in planes]
    return found
