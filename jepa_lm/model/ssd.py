"""State-space duality (SSD), the scan of Mamba-2: in chunks, and position by position as a reference.

Each head keeps a state S [P, N] that decays with its own time step and accumulates outer products:

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T        y_t = S_t C_t

`ssd` cuts time into chunks: inside a chunk the recurrence is a masked matrix product; between chunks
only the state at the border is passed on. `ssd_sequential` computes the recurrence above directly.
Source: Dao and Gu, "Transformers are SSMs" (2024), section 6.
Legend: B batch, T positions, H heads, P head width, G groups (heads share B and C by group), N state
size, K chunks, L positions of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lm.utils.precision import full_precision

CHUNKS_AT_ONCE = 64
"""Chunks whose states are passed on in one product; longer texts loop over such groups."""


def ssd_sequential(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the recurrence position by position; arguments and results as in `ssd`."""
    heads = x.shape[2]
    b = b.repeat_interleave(heads // b.shape[2], dim=2)  # [B, T, H, N]
    c = c.repeat_interleave(heads // c.shape[2], dim=2)  # [B, T, H, N]
    if state is None:
        state = x.new_zeros(x.shape[0], heads, x.shape[3], b.shape[3])
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * a)[..., None, None]  # [B, H, 1, 1]
        taken_up = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]  # [B, H, P, N]
        state = decay * state + taken_up
        outputs.append((state * c[:, t, :, None]).sum(-1))  # [B, H, P]
    return torch.stack(outputs, dim=1), state  # [B, T, H, P], [B, H, P, N]


def ssd(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Compute the scan in chunks; T may be any length.

    Args:
        x: [B, T, H, P]. dt: time steps [B, T, H], positive, float32. a: [H], negative, float32.
        b, c: [B, T, G, N]; head h reads group h // (H / G).
        state: S before the first position, [B, H, P, N] float32, or None for zeros.
        chunk: L.

    Returns:
        y [B, T, H, P], and the state S [B, H, P, N] after the last position.
    """
    T = x.shape[1]
    L = min(chunk, T)
    if pad := -T % L:  # a time step of 0 does not change the state
        x, b, c = (F.pad(v, (0, 0, 0, 0, 0, pad)) for v in (x, b, c))
        dt = F.pad(dt, (0, 0, 0, pad))
    y, state = _whole_chunks(x, dt, a, b, c, state, L)
    return y[:, :T], state


def _whole_chunks(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None, L: int
) -> tuple[Tensor, Tensor]:
    B, T, H, P = x.shape
    G, N = b.shape[2:]
    K, R = T // L, H // G  # R heads per group
    dt = dt.view(B, K, L, G, R)
    log_decay = (dt * a.view(G, R)).permute(0, 1, 3, 4, 2).cumsum(-1)  # [B, K, G, R, L]
    x = x.reshape(B, K, L, G, R, P) * dt.to(x.dtype)[..., None]  # [B, K, L, G, R, P]
    b, c = (v.reshape(B, K, L, G, N).transpose(2, 3) for v in (b, c))  # [B, K, G, L, N]

    # Inside a chunk: y_l = sum over s <= l of (c_l . b_s) exp(log_decay_l - log_decay_s) dt_s x_s.
    decay = _decay_between(log_decay)  # [B, K, G, R, L, L]
    scores = (c @ b.transpose(-1, -2)).unsqueeze(3)  # [B, K, G, 1, L, L]
    rows = x.permute(0, 1, 3, 4, 2, 5)  # [B, K, G, R, L, P]
    y = (scores * decay.to(scores.dtype)) @ rows  # [B, K, G, R, L, P]

    # Contribution of each chunk to the state at its end, as one product for all heads of a group.
    to_end = (log_decay[..., -1:] - log_decay).exp()  # [B, K, G, R, L]
    kept = rows * to_end.to(rows.dtype)[..., None]  # [B, K, G, R, L, P]
    added = kept.transpose(-1, -2) @ b.unsqueeze(3)  # [B, K, G, R, P, N]

    # States before each chunk and after the last one.
    states = _pass_on(added, log_decay[..., -1], state)  # [B, K + 1, G, R, P, N]
    before, last = states[:, :-1], states[:, -1]
    # Contribution of the state before each chunk to its outputs.
    read = c.unsqueeze(3) @ before.to(c.dtype).transpose(-1, -2)  # [B, K, G, R, L, P]
    y = y + read * log_decay.exp().to(read.dtype)[..., None]  # [B, K, G, R, L, P]
    return y.permute(0, 1, 4, 2, 3, 5).reshape(B, T, H, P), last.reshape(B, H, P, N)


def _decay_between(log_decay: Tensor) -> Tensor:
    """Return exp(log_decay_l - log_decay_s) for s <= l, 0 elsewhere: [..., L] -> [..., L, L].

    Mask before the exponential, which would overflow above the diagonal.
    """
    L = log_decay.shape[-1]
    difference = log_decay[..., :, None] - log_decay[..., None, :]  # [..., L, L]
    future = torch.ones(L, L, dtype=torch.bool, device=log_decay.device).triu(1)
    return difference.masked_fill(future, -torch.inf).exp()


def _pass_on(added: Tensor, log_decay: Tensor, state: Tensor | None) -> Tensor:
    """Return the states at the borders of chunks, in float32 or wider, whatever dtype `added` has.

    Args:
        added: contribution of each chunk, [B, K, G, R, P, N].
        log_decay: log decay over each chunk, [B, K, G, R].
        state: state before the first chunk, [B, H, P, N], or None for zeros.

    Returns:
        [B, K + 1, G, R, P, N].
    """
    B, _, G, R, P, N = added.shape
    added = added.to(log_decay.dtype)
    last = added.new_zeros(B, G, R, P, N) if state is None else state.view(B, G, R, P, N)
    last = last.to(log_decay.dtype)
    passed = []
    parts = zip(added.split(CHUNKS_AT_ONCE, 1), log_decay.split(CHUNKS_AT_ONCE, 1), strict=True)
    for part, decay in parts:
        borders = _pass_on_at_once(part, decay, last)  # [B, part + 1, G, R, P, N]
        passed.append(borders[:, :-1])
        last = borders[:, -1]
    return torch.cat((*passed, last[:, None]), dim=1)


def _pass_on_at_once(added: Tensor, log_decay: Tensor, state: Tensor) -> Tensor:
    """Compute `_pass_on` as one product, whose work grows with K^2; state [B, G, R, P, N]."""
    B, K, G, R, P, N = added.shape
    rows = torch.cat((state[:, None], added), dim=1)  # [B, K + 1, G, R, P, N]
    flat = rows.permute(0, 2, 3, 1, 4, 5).reshape(B, G, R, K + 1, P * N)
    # Row i, column j: log decay over chunks j..i-1, summed separately for each j, because the difference
    # of two long sums would lose the precision of a short stretch late in a long text.
    steps = F.pad(log_decay.permute(0, 2, 3, 1), (1, 0))[..., None].expand(B, G, R, K + 1, K + 1)
    after = torch.ones(K + 1, K + 1, dtype=torch.bool, device=added.device).tril(-1)
    summed = steps.masked_fill(~after, 0.0).cumsum(-2)
    decay = summed.masked_fill(after.T, -torch.inf).exp()  # [B, G, R, K + 1, K + 1]
    with full_precision(added.device):
        passed = decay @ flat  # [B, G, R, K + 1, P N]
    # To [B, K + 1, G, R, P, N].
    return passed.view(B, G, R, K + 1, P, N).permute(0, 3, 1, 2, 4, 5)


def final_state(x: Tensor, dt: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return S after the last position from an empty start, [B, H, P, N]; arguments as in `ssd`.

    S_T = sum_s exp(a * sum_{s < r <= T} dt_r) dt_s x_s b_s^T, as one product. The inner sums run backwards
    from the end, so the recent positions, which weigh most, are the most precise.
    """
    B, T, H, P = x.shape
    G, N = b.shape[2:]
    log_decay = dt * a
    to_end = log_decay.flip(1).cumsum(1).flip(1) - log_decay  # [B, T, H], own step excluded
    weighted = x * (dt * to_end.exp()).to(x.dtype)[..., None]  # [B, T, H, P]
    rows = weighted.view(B, T, G, H // G * P).permute(0, 2, 3, 1)  # [B, G, R P, T]
    state = rows @ b.permute(0, 2, 1, 3)  # [B, G, R P, N]
    return state.view(B, H, P, N).to(log_decay.dtype)
