"""Triton kernels of the SSD scan, forward and backward; `ssd_launch` launches them.

Time is cut into chunks of L positions. Within a chunk, with the cumulative log decay
g_l = sum_{r <= l} dt_r A and the state S before the chunk:

    y_l = sum_{s <= l} (c_l . b_s) exp(g_l - g_s) dt_s x_s + exp(g_l) S c_l
    S'  = exp(g_L) S + sum_s exp(g_L - g_s) dt_s x_s b_s^T

The decay between two positions is a factor of both their terms, so its gradient needs no [L, L] matrix:
with the gradients dC, dB of one head, dg_l = c_l . dC_l - b_l . dB_l. Both are computed from the same
rounded products, so that what must cancel in the reverse cumulative sum does cancel, in bfloat16 too.
Source of the scan: Dao and Gu, "Transformers are SSMs" (2024), section 6.

Legend: B batch, T positions, H heads, P head width, G groups, N state size, K chunks, L positions of a
chunk, R heads per group. Kernels work on tiles of ROWS positions, BLOCK_P >= P and BLOCK_N >= N columns.
Per-position scalars of a head lie as [B, K, H, L] float32, states as [B, K, H, P, N]. Positions past T
have a time step of 0 and zeros in x, b, c, so they change nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(pointer, rows, columns, stride, limit, width: tl.constexpr):
    """Load a tile [rows, columns], with zeros in rows past `limit` and columns past `width`."""
    inside = rows[:, None] < limit
    if columns.shape[0] > width:
        inside = inside & (columns[None, :] < width)
    return tl.load(pointer + (rows[:, None] * stride + columns[None, :]), mask=inside, other=0.0)


@triton.jit
def store_rows(pointer, rows, columns, stride, limit, width: tl.constexpr, values):
    """Store a tile [rows, columns], except past the limits, in the dtype of the pointer."""
    inside = rows[:, None] < limit
    if columns.shape[0] > width:
        inside = inside & (columns[None, :] < width)
    values = values.to(pointer.dtype.element_ty)
    tl.store(pointer + (rows[:, None] * stride + columns[None, :]), values, mask=inside)


@triton.jit
def load_state(states, place, p, n, P: tl.constexpr, N: tl.constexpr):
    """Load state number `place`, a tile [p, n] with zeros past P and N."""
    pointers = states + place * (P * N) + (p[:, None] * N + n[None, :])
    if p.shape[0] == P and n.shape[0] == N:
        return tl.load(pointers)
    return tl.load(pointers, mask=(p[:, None] < P) & (n[None, :] < N), other=0.0)


@triton.jit
def product(left, right):
    """Multiply two tiles in float32 or, for narrower operands, with sums in float32."""
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def decay_between(later, earlier, decay_later, decay_earlier):
    """Return exp(g_later - g_earlier) where later >= earlier, 0 elsewhere.

    Mask before the exponential, which would overflow where later < earlier.
    """
    return tl.exp(tl.where(later >= earlier, decay_later - decay_earlier, float("-inf")))


@triton.jit
def log_decays(
    dt, a, steps, decays, T, H, K, dt_b, dt_t, dt_h, L: tl.constexpr, BLOCK_H: tl.constexpr
):  # fmt: skip
    """Write dt and its cumulative log decay within each chunk as [B, K, H, L].

    One program per chunk and BLOCK_H heads.
    """
    blocks = tl.cdiv(H, BLOCK_H)
    chunk = (tl.program_id(0) // blocks).to(tl.int64)
    first = chunk % K * L
    rows = tl.arange(0, L)
    heads = tl.program_id(0) % blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = (first + rows[:, None] < T) & (heads[None, :] < H)
    place = dt + chunk // K * dt_b + (first + rows[:, None]) * dt_t + heads[None, :] * dt_h
    step = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    rate = tl.load(a + heads, mask=heads < H, other=0.0).to(tl.float32)
    target = chunk * H * L + heads[None, :] * L + rows[:, None]
    held = (heads < H)[None, :] & (rows >= 0)[:, None]
    tl.store(steps + target, step, mask=held)
    tl.store(decays + target, tl.cumsum(step * rate[None, :], 0), mask=held)


@triton.jit
def chunk_states(
    x, b, steps, decays, states, T, H, K, R, x_b, x_t, x_h, b_b, b_t, b_g,
    L: tl.constexpr, ROWS: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    """Write what each chunk adds to the state after it, sum_s exp(g_L - g_s) dt_s x_s b_s^T [P, N].

    BACKWARD: what it adds to the gradient of the state before it, sum_l exp(g_l) dy_l c_l^T, with dy for
    x and c for b. One program per chunk and head.
    """
    head = tl.program_id(0) % H
    chunk = (tl.program_id(0) // H).to(tl.int64)
    first = chunk % K * L
    x += chunk // K * x_b + first * x_t + head * x_h
    b += chunk // K * b_b + first * b_t + head // R * b_g
    scalars = (chunk * H + head) * L
    total = tl.load(decays + scalars + L - 1)
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    added = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for start in range(0, L, ROWS):
        rows = start + tl.arange(0, ROWS)
        decay = tl.load(decays + scalars + rows)
        weight = tl.exp(decay if BACKWARD else total - decay)
        if not BACKWARD:
            weight *= tl.load(steps + scalars + rows)
        x_rows = load_rows(x, rows, p, x_t, T - first, P)
        b_rows = load_rows(b, rows, n, b_t, T - first, N)
        added += product(tl.trans((x_rows * weight[:, None]).to(b_rows.dtype)), b_rows)
    store_rows(states + (chunk * H + head) * P * N, p, n, N, P, N, added)


@triton.jit
def pass_states(
    states, decays, start, last, before, kept, H, K, size, kept_size,
    L: tl.constexpr, BLOCK: tl.constexpr, STARTS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Replace what each chunk adds by the state before it; write the state after the last one.

    REVERSE runs from the last chunk to the first, with gradients of states: what a chunk adds becomes the
    gradient of the state after it. It also writes `kept`, exp(g_L) times the product of that gradient and of
    the state `before` the chunk, [blocks, B, K, H], `kept_size` apart. `start` [B, H, P, N] comes first if
    STARTS, else zeros. `size` is P N. One program per batch row, head and block of BLOCK entries.
    """
    blocks = tl.cdiv(size, BLOCK)
    block = tl.program_id(0) % blocks
    entries = block * BLOCK + tl.arange(0, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)  # batch row and head
    inside = entries < size
    state = tl.zeros((BLOCK,), tl.float32)
    if STARTS:
        state = tl.load(start + row * size + entries, mask=inside, other=0.0).to(tl.float32)
    for i in range(K):
        k = K - 1 - i if REVERSE else i
        place = (row // H * K + k) * H + row % H
        pointers = states + place * size + entries
        added = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
        stored = state.to(states.dtype.element_ty)
        tl.store(pointers, stored, mask=inside)
        decay = tl.exp(tl.load(decays + place * L + L - 1))
        if REVERSE:
            old = tl.load(before + place * size + entries, mask=inside, other=0.0).to(tl.float32)
            tl.store(kept + block * kept_size + place, decay * tl.sum(old * stored.to(tl.float32)))
        state = decay * state + added
    tl.store(last + row * size + entries, state, mask=inside)


@triton.jit
def scan_chunks(
    x, b, c, steps, decays, states, y, T, H, K, R,
    x_b, x_t, x_h, b_b, b_t, b_g, c_b, c_t, c_g,
    L: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write y [B, T, H, P] from the states before the chunks; one program per ROWS positions of a head."""
    head = tl.program_id(0) % H
    tile = tl.program_id(0) // H % (L // ROWS)
    chunk = (tl.program_id(0) // H // (L // ROWS)).to(tl.int64)
    batch, first = chunk // K, chunk % K * L
    x += batch * x_b + first * x_t + head * x_h
    b += batch * b_b + first * b_t + head // R * b_g
    c += batch * c_b + first * c_t + head // R * c_g
    scalars = (chunk * H + head) * L
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    later = tile * ROWS + tl.arange(0, ROWS)
    c_rows = load_rows(c, later, n, c_t, T - first, N)
    decay_later = tl.load(decays + scalars + later)
    state = load_state(states, chunk * H + head, p, n, P, N).to(c_rows.dtype)
    total = product(c_rows, tl.trans(state)) * tl.exp(decay_later)[:, None]
    for start in range(0, (tile + 1) * ROWS, INNER):
        earlier = start + tl.arange(0, INNER)
        b_rows = load_rows(b, earlier, n, b_t, T - first, N)
        x_rows = load_rows(x, earlier, p, x_t, T - first, P)
        decay = decay_between(
            later[:, None], earlier[None, :],
            decay_later[:, None], tl.load(decays + scalars + earlier)[None, :],
        )  # fmt: skip
        weight = decay * tl.load(steps + scalars + earlier)[None, :]
        scores = product(c_rows, tl.trans(b_rows)) * weight
        total += product(scores.to(x_rows.dtype), x_rows)
    y += ((batch * T + first) * H + head) * P
    store_rows(y, later, p, H * P, T - first, P, total)
