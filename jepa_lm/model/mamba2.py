"""Mamba-2 in the shared U-Net (#903), with the parameters and layout of the `mamba-ssm` package.

Block: x = mix[0] x + mix[1] x0; x += ssm_scale * mixer(rms(x)); on every `mlp_every`-th block,
starting with the first, x += mlp_scale * W2 rms(relu(W1 rms(x))^2).
Mixer: [z, x, B, C, dt] = W_in u; x, B, C = silu(conv(x, B, C)); dt = softplus(dt + dt_bias);
y = ssd(x, dt, -exp(A_log), B, C) + D x; out = W_out (gain * rms(y * silu(z))).
Source: Dao and Gu (2024); submission #903.
Legend: B batch, T positions, D model width, I inner width, H heads, P head width, G groups, N state
size, W width of the convolution, C its channels I + 2 G N.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lm.model.dropout import Dropout
from jepa_lm.model.kernels import Scan, cuda_scan
from jepa_lm.model.layers import AlignedLinear, SquaredReluMLP, aligned_product, rms_norm
from jepa_lm.model.ssd import final_state, ssd
from jepa_lm.model.unet import UNet
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, Positive, Whole, checked

DT_MIN, DT_MAX, DT_FLOOR = 0.001, 0.1, 1e-4
"""Initial time steps are log-uniform in [DT_MIN, DT_MAX] and at least DT_FLOOR."""
A_RANGE = (1.0, 16.0)
"""Range of the initial decay rates, which are uniform."""


def wide(x: Tensor) -> Tensor:
    """Return x in float32 or wider, the precision of decays and norms."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class MixerState(NamedTuple):
    """State of a mixer after the text so far."""

    conv: Tensor
    """The last W - 1 inputs of the convolution, [B, W - 1, C]."""
    ssm: Tensor
    """State of the scan, [B, H, P, N], float32."""


class GatedRMSNorm(nn.Module):
    """gain * rms(y * silu(z)), with the RMS taken over each group of channels."""

    def __init__(self, *, dim: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """y, z [..., I] -> [..., I]."""
        gated = wide(y) * F.silu(wide(z))
        # Normalise [..., G, I / G], then flatten to [..., I].
        normed = rms_norm(gated.unflatten(-1, (self.groups, -1)), self.eps).flatten(-2)
        return (self.weight * normed).to(y.dtype)


class Mamba2Mixer(nn.Module):
    """Mamba-2 mixer with the same state dict as `mamba_ssm.Mamba2` of the same sizes.

    Args:
        dim: D. state_dim: N. conv_width: W. head_dim: P. groups: G. expand: I / D.
        chunk: positions per chunk of the PyTorch scan; affects speed, not results.
        norm_eps: eps of the gated norm.
    """

    def __init__(
        self,
        *,
        dim: int,
        state_dim: int,
        conv_width: int,
        head_dim: int,
        groups: int,
        expand: float,
        chunk: int,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.inner = int(expand * dim)
        self.heads, self.groups, self.state_dim = self.inner // head_dim, groups, state_dim
        self.chunk = chunk
        self.cuda_scan: Scan | None = None
        """The scan of CUDA tensors, if it is not the PyTorch one; set by `Mamba2.use_kernel`."""
        channels = self.inner + 2 * groups * state_dim
        self.in_proj = AlignedLinear(dim, self.inner + channels + self.heads)
        self.conv1d = nn.Conv1d(
            channels, channels, conv_width, groups=channels, padding=conv_width - 1
        )
        dt = torch.exp(torch.empty(self.heads).uniform_(math.log(DT_MIN), math.log(DT_MAX)))
        dt = dt.clamp(min=DT_FLOOR)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # inverse softplus
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(*A_RANGE).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(dim=self.inner, groups=groups, eps=norm_eps)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def forward(self, u: Tensor, state: MixerState | None = None) -> tuple[Tensor, MixerState]:
        """u [B, T, D] and the state before it -> [B, T, D] and the state after it."""
        z, xbc, dt = self.in_proj(u).split((self.inner, self.conv1d.in_channels, self.heads), -1)
        mixed, conv = self._convolve(xbc, None if state is None else state.conv)
        x, b, c = self._parts(mixed)
        before = None if state is None else state.ssm
        y, ssm = self._scan(x, self._steps(dt), -wide(self.A_log).exp(), b, c, before)
        y = y + x * self.D.to(x.dtype)[:, None]  # [B, T, H, P], flattened to [B, T, I] below
        return self.out_proj(self.norm(y.flatten(2), z)), MixerState(conv, ssm)

    def absorb(self, u: Tensor) -> MixerState:
        """Return the state after u [B, T, D] from an empty start, without computing outputs."""
        weight = self.in_proj.weight[self.inner :]
        product = aligned_product(u, weight) if u.is_cuda else F.linear(u, weight)
        xbc, dt = product.split((self.conv1d.in_channels, self.heads), -1)
        mixed, conv = self._convolve(xbc, None)
        x, b, _ = self._parts(mixed)
        return MixerState(conv, final_state(x, self._steps(dt), -wide(self.A_log).exp(), b))

    def _scan(
        self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # No kernel computes in float64.
        if self.cuda_scan is not None and x.is_cuda and x.dtype != torch.float64:
            return self.cuda_scan(x, dt, a, b, c, state)
        return ssd(x, dt, a, b, c, state, chunk=self.chunk)

    def _steps(self, dt: Tensor) -> Tensor:
        return F.softplus(wide(dt) + wide(self.dt_bias))

    def _parts(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the convolved channels [B, T, C] into x [B, T, H, P] and b, c [B, T, G, N]."""
        states = self.groups * self.state_dim
        x, b, c = mixed.split((self.inner, states, states), -1)
        return (
            x.unflatten(-1, (self.heads, -1)),  # [B, T, H, P]
            b.unflatten(-1, (self.groups, -1)),  # [B, T, G, N]
            c.unflatten(-1, (self.groups, -1)),  # [B, T, G, N]
        )

    def _convolve(self, xbc: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return silu(conv) of xbc [B, T, C] after `before` [B, W - 1, C], and the last W - 1 inputs."""
        W = self.conv1d.kernel_size[0]
        if before is None:
            padded = F.pad(xbc, (0, 0, W - 1, 0))  # [B, W - 1 + T, C]
        else:
            padded = torch.cat((before.to(xbc.dtype), xbc), dim=1)
        T = xbc.shape[1]
        weight = self.conv1d.weight.to(xbc.dtype)[:, 0].T  # [W, C]
        y = sum(padded[:, i : i + T] * weight[i] for i in range(W))
        assert isinstance(y, Tensor)
        if self.conv1d.bias is not None:
            y = y + self.conv1d.bias.to(xbc.dtype)
        return F.silu(y), padded[:, T:]


class Mamba2Block(nn.Module):
    """Block of a mixer and optionally an MLP, with learned per-channel scales."""

    def __init__(
        self, *, dim: int, mixer: Mamba2Mixer, mlp: SquaredReluMLP | None, norm_eps: float
    ) -> None:
        super().__init__()
        self.mixer, self.mlp, self.norm_eps = mixer, mlp, norm_eps
        self.ssm_scale = nn.Parameter(torch.ones(dim))
        self.mlp_scale = None if mlp is None else nn.Parameter(torch.ones(dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(dim), torch.zeros(dim))))

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        extra_value: Tensor | None = None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """x, x0 [B, T, D] -> [B, T, D]."""
        return self.stream(x, x0, None, dropout)[0]

    def stream(
        self, x: Tensor, x0: Tensor, state: MixerState | None, dropout: Dropout | None = None
    ) -> tuple[Tensor, MixerState]:
        """Run the block on x [B, T, D], continuing from `state`; return the output and the new state."""
        x = self._mix(x, x0)
        y, state = self.mixer(rms_norm(x, self.norm_eps), state)
        y = y if dropout is None else dropout(0, y)
        return self._mlp(x + self.ssm_scale.to(x.dtype) * y, dropout), state

    def tail(self, x: Tensor, x0: Tensor, extra_value: Tensor | None, count: int) -> Tensor:
        """Return outputs of the last `count` positions, [B, count, D]; earlier ones only feed the state."""
        if count == x.shape[1]:
            return self(x, x0)
        x = self._mix(x, x0)
        normed = rms_norm(x, self.norm_eps)
        state = self.mixer.absorb(normed[:, :-count])
        y, _ = self.mixer(normed[:, -count:], state)
        return self._mlp(x[:, -count:] + self.ssm_scale.to(x.dtype) * y)

    def _mix(self, x: Tensor, x0: Tensor) -> Tensor:
        mix = self.resid_mix.to(x.dtype)
        return mix[0] * x + mix[1] * x0

    def _mlp(self, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        if self.mlp is None:
            return x
        assert self.mlp_scale is not None
        added = self.mlp(rms_norm(x, self.norm_eps))
        added = added if dropout is None else dropout(1, added)
        return x + self.mlp_scale.to(x.dtype) * added


class Mamba2(UNet):
    """A U-Net of Mamba-2 blocks.

    Args:
        dim: D. layers: depth.
        state_dim, conv_width, head_dim, groups, expand, chunk: see Mamba2Mixer.
        mlp_every: blocks 0, n, 2n, ... have an MLP; 0 means no MLP.
        mlp_multiple: hidden width of the MLP over D.
        norm_eps: eps of the norms before mixer and MLP, and inside the MLP.
        gated_norm_eps: eps of the mixer's norm.

    Raises:
        UserError: a value is out of range, or widths do not divide.
    """

    recurrent = True
    takes_values = False

    @checked
    def __init__(
        self,
        *,
        dim: Count,
        layers: Count,
        state_dim: Count,
        conv_width: Count,
        head_dim: Count,
        groups: Count,
        expand: Positive,
        chunk: Count,
        mlp_every: Whole,
        mlp_multiple: Positive,
        norm_eps: float,
        gated_norm_eps: float,
    ) -> None:
        _check_widths(dim, expand=expand, head_dim=head_dim, groups=groups)

        def block(i: int) -> Mamba2Block:
            mixer = Mamba2Mixer(
                dim=dim,
                state_dim=state_dim,
                conv_width=conv_width,
                head_dim=head_dim,
                groups=groups,
                expand=expand,
                chunk=chunk,
                norm_eps=gated_norm_eps,
            )
            mlp = None
            if mlp_every and i % mlp_every == 0:
                mlp = SquaredReluMLP(
                    dim=dim,
                    hidden=int(mlp_multiple * dim),
                    negative_slope=0.0,
                    inner_norm_eps=norm_eps,
                )
                nn.init.zeros_(mlp.down.weight)
            return Mamba2Block(dim=dim, mixer=mixer, mlp=mlp, norm_eps=norm_eps)

        super().__init__(blocks=(block(i) for i in range(layers)), dim=dim)

    def use_kernel(self, kernel: str) -> None:
        """Choose the implementation of the scan on CUDA devices by name, see `cuda_scan`."""
        for module in self.modules():
            if isinstance(module, Mamba2Mixer):
                head_dim = module.inner // module.heads
                module.cuda_scan = cuda_scan(kernel, head_dim=head_dim, state_dim=module.state_dim)


def _refuse(key: str, value: float, right: str) -> None:
    raise UserError(f"model.backbone.{key}={value}: {right}")


def _check_widths(dim: int, *, expand: float, head_dim: int, groups: int) -> None:
    inner = expand * dim
    if inner < 1 or inner != int(inner):
        _refuse("expand", expand, f"times model.dim={dim} must be a whole number of channels")
    if inner % head_dim:
        _refuse("head_dim", head_dim, f"must divide model.dim x expand = {int(inner)}")
    heads = int(inner) // head_dim
    if heads % groups:
        _refuse("groups", groups, f"must divide the {heads} heads (model.dim x expand / head_dim)")
