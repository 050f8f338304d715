"""NF4: 16 levels at the quantiles of a normal distribution, with one scale per block of columns.

Source: QLoRA (Dettmers et al., 2023), without its double quantization.
Legend: R rows, C columns, g columns per block, K blocks per row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from jepa_lm.quantization.parts import as_matrix, expect, matrix_shape, require_finite, scales

LEVELS = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip


class NF4:
    """Four bits per value: w ~ LEVELS[code] * scale.

    Args:
        block: columns that share a scale, in float16.
    """

    name = "nf4"
    rows_are_alone = True

    def __init__(self, *, block: int) -> None:
        self.block = block

    def _codes(self, weight):
        matrix = as_matrix(weight.float())
        blocks = F.pad(matrix, (0, -matrix.shape[1] % self.block)).unflatten(1, (-1, self.block))
        scale = scales(blocks.abs().amax(-1, keepdim=True), "float16")  # [R, K, 1]
        levels = torch.tensor(LEVELS, device=weight.device)
        middles = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(blocks / scale.float(), middles)
        return codes.flatten(1)[:, : matrix.shape[1]], scale

    def pack(self, weight):
        codes, scale = self._codes(weight)
        require_finite(scale)
        flat = F.pad(codes.flatten(), (0, codes.numel() % 2)).to(torch.uint8).view(-1, 2)
        return {"": flat[:, 0] << 4 | flat[:, 1], "scale": scale[..., 0].contiguous()}

    def fake_quantize(self, weight):
        codes, scale = self._codes(weight)
        return _values(codes, scale[..., 0], self.block).view(weight.shape).to(weight.dtype)

    def spec(self):
        return {"kind": f"{__name__}.{type(self).__name__}", "block": self.block}

    @staticmethod
    def unpack(spec, parts, shape):
        rows, columns = matrix_shape(shape)
        block = min(int(spec["block"]), columns)  # a file may name any number
        expect(parts[""], torch.uint8, (-(-rows * columns // 2),))
        expect(parts["scale"], torch.float16, (rows, -(-columns // block)))
        codes = torch.stack((parts[""] >> 4, parts[""] & 15), 1).flatten()[: rows * columns]
        return _values(codes.view(rows, columns).long(), parts["scale"], block).view(shape)


def _values(codes, scale, block):
    """Return codes [R, C] with scales [R, K] as float32 values [R, C]."""
    spread = scale.float().repeat_interleave(block, dim=1)[:, : codes.shape[1]]
    return torch.tensor(LEVELS, device=codes.device)[codes] * spread
