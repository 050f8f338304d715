"""The U-Net transformer of submissions #832, #1196, #1243 and #1581, with a setting for each feature.

Block: x = mix[0] x + mix[1] x0; x += attn_scale * attn(s rms(x)); x += mlp_scale * mlp(s rms(x)),
s = 1/sqrt(layer + 1) with `ln_scale`, else 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_lm.model.dropout import Dropout
from jepa_lm.model.layers import (
    CausalSelfAttention,
    RotaryTables,
    SquaredReluMLP,
    is_large,
    rms_norm,
)
from jepa_lm.model.unet import UNet
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, Positive, Whole, checked


class TransformerBlock(nn.Module):
    """Attention and MLP with learned per-channel scales; `resid_mix` blends in the embedded input."""

    def __init__(
        self,
        *,
        dim: int,
        attention: CausalSelfAttention,
        mlp: SquaredReluMLP,
        input_scale: float,
        resid_mix: bool,
    ) -> None:
        super().__init__()
        self.attention, self.mlp, self.input_scale = attention, mlp, input_scale
        self.attn_scale = nn.Parameter(torch.ones(dim))
        self.mlp_scale = nn.Parameter(torch.ones(dim))
        start = torch.stack((torch.ones(dim), torch.zeros(dim)))
        self.resid_mix = nn.Parameter(start) if resid_mix else None

    def forward(
        self, x: Tensor, x0: Tensor, extra_value: Tensor | None, dropout: Dropout | None = None
    ) -> Tensor:
        """x, x0 [B, T, D], extra_value [B, T, kv width] or None -> [B, T, D]."""
        return self.tail(x, x0, extra_value, None, dropout=dropout)

    def tail(
        self,
        x: Tensor,
        x0: Tensor,
        extra_value: Tensor | None,
        count: int | None,
        visible: Tensor | None = None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Return outputs of the last `count` positions, [B, count, D], which attend to the earlier ones."""
        if self.resid_mix is not None:
            mix = self.resid_mix.to(x.dtype)
            x = mix[0] * x + mix[1] * x0
        read = self.attention(rms_norm(x) * self.input_scale, extra_value, count, visible)
        read = read if dropout is None else dropout(0, read)
        x = x[:, -read.shape[1] :] + self.attn_scale.to(x.dtype) * read
        added = self.mlp(rms_norm(x) * self.input_scale)
        added = added if dropout is None else dropout(1, added)
        return x + self.mlp_scale.to(x.dtype) * added


class Transformer(UNet):
    """A U-Net of transformer blocks.

    Args:
        dim: width D. layers: depth. heads: query heads H. kv_heads: K, divides H.
        mlp_multiple: hidden width of the MLP over D.
        mlp_negative_slope: slope of the squared leaky relu; 0 is relu^2.
        q_gain: start of the gain on each query head.
        rope_dims: rotated dims per head, 0 for all. rope_base: base of the frequencies.
        rope_train_length: beyond this length the base grows; None never scales it.
        xsa_last: number of last layers that exclude the position's own value (XSA).
        ln_scale: scale the normed input of layer l by 1/sqrt(l + 1).
        resid_mix: blend the embedded input into every block.
        orthogonal_init: matrices with both sides >= 64 start orthogonal (#832, #1243) instead of
            with PyTorch's default. Output projections always start at zero.

    Raises:
        UserError: a width does not divide, or xsa_last exceeds layers.
    """

    @checked
    def __init__(
        self,
        *,
        dim: Count,
        layers: Count,
        heads: Count,
        kv_heads: Count,
        mlp_multiple: Positive,
        mlp_negative_slope: float,
        q_gain: float,
        rope_dims: Whole,
        rope_base: Positive,
        rope_train_length: Count | None,
        xsa_last: Whole,
        ln_scale: bool,
        resid_mix: bool,
        orthogonal_init: bool,
    ) -> None:
        _check_shape(dim, layers, heads, kv_heads, rope_dims, xsa_last)
        rotary = RotaryTables(
            rope_dims=rope_dims or dim // heads, base=rope_base, train_length=rope_train_length
        )

        def block(i: int) -> TransformerBlock:
            attention = CausalSelfAttention(
                dim=dim,
                heads=heads,
                kv_heads=kv_heads,
                rotary=rotary,
                q_gain=q_gain,
                exclude_self=i >= layers - xsa_last,
            )
            mlp = SquaredReluMLP(
                dim=dim, hidden=int(mlp_multiple * dim), negative_slope=mlp_negative_slope
            )
            scale = (i + 1) ** -0.5 if ln_scale else 1.0
            return TransformerBlock(
                dim=dim, attention=attention, mlp=mlp, input_scale=scale, resid_mix=resid_mix
            )

        super().__init__(blocks=(block(i) for i in range(layers)), dim=dim)
        self.rotary = rotary
        self._initialise(orthogonal_init)

    def keep_tables(self, positions: int, device: torch.device) -> None:
        self.rotary.keep(positions, device)

    def _initialise(self, orthogonal: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear) and orthogonal and is_large(module.weight):
                nn.init.orthogonal_(module.weight)
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.mlp.down.weight)


def _check_shape(
    dim: int, layers: int, heads: int, kv_heads: int, rope_dims: int, xsa_last: int
) -> None:
    def refuse(key: str, value: int, right: str) -> None:
        raise UserError(f"model.backbone.{key}={value}: {right}")

    if dim % heads:
        refuse("heads", heads, f"must divide model.dim={dim}")
    if heads % kv_heads:
        refuse("kv_heads", kv_heads, f"must divide model.backbone.heads={heads}")
    head_dim = dim // heads
    rotated = rope_dims or head_dim
    if rotated % 2 or not 4 <= rotated <= head_dim:
        right = f"even, 4 to the head width {head_dim} (model.dim / heads); 0 rotates all of it"
        refuse("rope_dims", rope_dims, right)
    if xsa_last > layers:
        refuse("xsa_last", xsa_last, f"0 to model.backbone.layers={layers}")
