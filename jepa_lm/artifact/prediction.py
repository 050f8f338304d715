"""How large an artifact will be, from the formats of its tensors and what trained weights look like.

Weights are drawn from a prior that was measured on trained models, packed as they will be, and their bytes'
entropy is counted; each codec needs a little more than that. docs/log.md says how far off it was. How large
weights become matters where scales have a floor (or float8 has none): twice as large is one bit more.
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
"""Values drawn of a tensor at most."""
OVERHEAD = {"brotli": 0.0, "ans": 0.02, "zstd": 0.02, "lzma": 0.12, "zlib": 0.3}
"""Bits that a codec needs for a byte beyond the entropy of its tensor (measured). Brotli needs 0.04 more for
independent values; rows of trained tensors differ, and it makes that good."""
NORMAL = 1e6
"""Degrees of freedom at which Student's t is the normal distribution for our purposes."""
HEADER_BYTES = 2000
TENSOR_BYTES = 18
"""What the metadata takes after compression: once, and for each tensor (measured)."""


@dataclass(frozen=True)
class Prior:
    """Trained weights of one kind: rows of Student's t, whose sizes differ by a log-normal factor."""

    match: str
    """A role or a pattern of names."""
    degrees: float
    """Of freedom; `NORMAL` is the normal distribution."""
    spread: float
    """Standard deviation of the logarithm of a row's size."""
    std: float
    """Of the values. It grows with training; that of matrices is what the published files' bits imply."""
    around_one: bool = False
    """Values near one, as gains and scales are; else around zero."""


PRIORS = (
    Prior("*.mlp.down.weight", degrees=9.0, spread=0.05, std=0.2),
    Prior("matrix", degrees=60.0, spread=0.12, std=0.2),
    Prior("embedding", degrees=NORMAL, spread=0.4, std=0.4),
    Prior("*", degrees=NORMAL, spread=0.0, std=0.1, around_one=True),
)
"""The first that fits. Measured on demo models after 150 s of Muon and AdamW (docs/log.md)."""


def predict(
    model: nn.Module,
    formats: Mapping[str, Format],
    codecs: Sequence[str],
    *,
    trained: bool = False,
) -> dict[str, Any]:
    """Predicted bytes of the artifact.

    Args:
        trained: the sizes of tensors are those of this model's, and rows that no text has used are zero as
            they are there; else both are as in the prior.

    Returns:
        `bytes` of the best codec, `compressors`: bytes by codec, and `formats`: by name the values stored so
        and the bits that each of them takes.
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
    """Some rows of a tensor of this shape, as training leaves them: [R', C...], a vector whole.

    Args:
        std: of values around zero, None for the prior's.
    """
    prior = next(p for p in PRIORS if p.match == role or fnmatchcase(name, p.match))
    rows, columns = (1, shape) if len(shape) < 2 else (shape[0], shape[1:])
    C = int(np.prod(columns))
    rows = min(rows, -(-DRAWN // C))
    w = rng.standard_t(prior.degrees, (rows, C)) * np.exp(
        prior.spread * rng.standard_normal((rows, 1))
    )
    w *= (1 - 2 / prior.degrees) ** 0.5 * np.exp(-(prior.spread**2))  # now of standard deviation 1
    w = 1 + prior.std * w if prior.around_one else (prior.std if std is None else std) * w
    return torch.from_numpy(w).float().view(shape if len(shape) < 2 else (rows, *columns))


def _size(parameter: Tensor) -> tuple[float, float]:
    """Root mean square of the values in rows that are not all zero, and the share of such rows."""
    rows = as_matrix(parameter.detach().float())
    used = rows.any(1)
    size = rows[used].square().mean().sqrt().item() if used.any() else 0.0
    return max(size, 1e-6), used.float().mean().item()


def entropy_of_bytes(parts: Parts) -> list[tuple[int, float]]:
    """Number and entropy in bits of the bytes that a tensor's parts are made of, plane by plane."""
    found = []
    for tensor in parts.values():
        planes = to_planes(tensor.reshape(-1)).numpy()
        found += [(len(plane), entropy(plane)) for plane in planes]
    return found
