"""Triton kernels of the backward pass of the SSD scan; equations, legend and layout in `ssd_kernels`.

Let D be the gradient of the state after a chunk, and u_s = dt_s x_s. Then, for one head,

    du_s = sum_{l >= s} (c_l . b_s) exp(g_l - g_s) dy_l + exp(g_L - g_s) D b_s
    dB_s = sum_{l >= s} (dy_l . u_s) exp(g_l - g_s) c_l + exp(g_L - g_s) D^T u_s
    dC_l = sum_{s <= l} (dy_l . u_s) exp(g_l - g_s) b_s + exp(g_l) S^T dy_l

and the gradients of b and c sum dB and dC over the heads of a group. A program adds up several heads;
where one program for all heads of a group would leave a GPU idle, parts are written in float32 and summed
afterwards. Either order is fixed, so results are the same each time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from jepa_lm.model.ssd_kernels import decay_between, load_rows, load_state, product, store_rows


@triton.jit
def column_gradients(
    x, b, c, dy, steps, decays, after, dx, db, within, carried, direct, T, H, K, R, G,
    x_b, x_t, x_h, b_b, b_t, b_g, c_b, c_t, c_g, dy_b, dy_t, dy_h, parts, part_size,
    L: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write what position s gets from the later ones: gradients of x and b, and scalars of its step.

    The heads of a group are shared among `parts` programs. One of these programs handles ROWS positions.

    Args:
        after: gradients of the states after the chunks. db: [parts, B, T, G, N], `part_size` apart.
        within, carried: b_s . dB_s from positions of this chunk, and from the state after it.
        direct: x_s . du_s, the gradient of dt_s as a factor of u_s.
    """
    group, part = tl.program_id(0) % (G * parts) // parts, tl.program_id(0) % parts
    tile = tl.program_id(0) // (G * parts) % (L // ROWS)
    chunk = (tl.program_id(0) // (G * parts) // (L // ROWS)).to(tl.int64)
    batch, first = chunk // K, chunk % K * L
    left = T - first
    x += batch * x_b + first * x_t
    b += batch * b_b + first * b_t + group * b_g
    c += batch * c_b + first * c_t + group * c_g
    dy += batch * dy_b + first * dy_t
    dx += (batch * T + first) * H * P
    db += part * part_size + ((batch * T + first) * G + group) * N
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    earlier = tile * ROWS + tl.arange(0, ROWS)
    b_rows = load_rows(b, earlier, n, b_t, left, N)
    b_sum = tl.zeros((ROWS, BLOCK_N), tl.float32)
    share = tl.cdiv(R, parts)
    for head in range(group * R + part * share, group * R + tl.minimum(R, (part + 1) * share)):
        scalars = (chunk * H + head) * L
        step, decay_earlier = (
            tl.load(steps + scalars + earlier), tl.load(decays + scalars + earlier),
        )  # fmt: skip
        x_rows = load_rows(x + head * x_h, earlier, p, x_t, left, P)
        # Through the state after the chunk.
        to_end = tl.exp(tl.load(decays + scalars + L - 1) - decay_earlier)
        gradient = load_state(after, chunk * H + head, p, n, P, N).to(x_rows.dtype)
        du = product(b_rows, tl.trans(gradient)) * to_end[:, None]
        by_step = tl.sum(x_rows * du, 1)
        tl.store(carried + scalars + earlier, by_step * step)
        b_sum += product(x_rows, gradient) * (to_end * step)[:, None]
        # Through the outputs of the chunk.
        own = tl.zeros((ROWS,), tl.float32)
        for start in range(tile * ROWS, L, INNER):
            later = start + tl.arange(0, INNER)
            c_rows = load_rows(c, later, n, c_t, left, N)
            dy_rows = load_rows(dy + head * dy_h, later, p, dy_t, left, P)
            decay = decay_between(
                later[None, :], earlier[:, None],
                tl.load(decays + scalars + later)[None, :], decay_earlier[:, None],
            )  # fmt: skip
            scores = product(b_rows, tl.trans(c_rows))
            du += product((scores * decay).to(dy_rows.dtype), dy_rows)
            d_scores = product(x_rows, tl.trans(dy_rows)) * decay
            by_step += tl.sum(d_scores * scores, 1)
            rounded = (d_scores * step[:, None]).to(c_rows.dtype)
            own += tl.sum(rounded * scores, 1)
            b_sum += product(rounded, c_rows)
        tl.store(within + scalars + earlier, own)
        tl.store(direct + scalars + earlier, by_step)
        store_rows(dx + head * P, earlier, p, H * P, left, P, du * step[:, None])
    store_rows(db, earlier, n, G * N, left, N, b_sum)


@triton.jit
def row_gradients(
    x, b, c, dy, steps, decays, states, dc, reads, T, H, K, R, G,
    x_b, x_t, x_h, b_b, b_t, b_g, c_b, c_t, c_g, dy_b, dy_t, dy_h, parts, part_size,
    L: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write what position l gets from the earlier ones: the gradient of c, and scalars of the decays.

    Programs and arguments as in `column_gradients`.

    Args:
        states: states before the chunks. dc: [parts, B, T, G, N].
        reads: c_l . dC_l.
    """
    group, part = tl.program_id(0) % (G * parts) // parts, tl.program_id(0) % parts
    tile = tl.program_id(0) // (G * parts) % (L // ROWS)
    chunk = (tl.program_id(0) // (G * parts) // (L // ROWS)).to(tl.int64)
    batch, first = chunk // K, chunk % K * L
    left = T - first
    x += batch * x_b + first * x_t
    b += batch * b_b + first * b_t + group * b_g
    c += batch * c_b + first * c_t + group * c_g
    dy += batch * dy_b + first * dy_t
    dc += part * part_size + ((batch * T + first) * G + group) * N
    p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    later = tile * ROWS + tl.arange(0, ROWS)
    c_sum = tl.zeros((ROWS, BLOCK_N), tl.float32)
    share = tl.cdiv(R, parts)
    for head in range(group * R + part * share, group * R + tl.minimum(R, (part + 1) * share)):
        scalars = (chunk * H + head) * L
        decay_later = tl.load(decays + scalars + later)
        dy_rows = load_rows(dy + head * dy_h, later, p, dy_t, left, P)
        state = load_state(states, chunk * H + head, p, n, P, N)
        c_head = product(dy_rows, state.to(dy_rows.dtype)) * tl.exp(decay_later)[:, None]
        for start in range(0, (tile + 1) * ROWS, INNER):
            earlier = start + tl.arange(0, INNER)
            b_rows = load_rows(b, earlier, n, b_t, left, N)
            x_rows = load_rows(x + head * x_h, earlier, p, x_t, left, P)
            decay = decay_between(
                later[:, None], earlier[None, :],
                decay_later[:, None], tl.load(decays + scalars + earlier)[None, :],
            )  # fmt: skip
            step = tl.load(steps + scalars + earlier)
            d_scores = product(dy_rows, tl.trans(x_rows)) * decay * step[None, :]
            c_head += product(d_scores.to(b_rows.dtype), b_rows)
        c_rows = load_rows(c, later, n, c_t, left, N)  # again for each head: fewer registers
        tl.store(reads + scalars + later, tl.sum(c_rows * c_head, 1))
        c_sum += c_head
    store_rows(dc, later, n, G * N, left, N, c_sum)


@triton.jit
def step_gradients(
    a, steps, reads, within, carried, direct, kept, ddt, da, T, H, K,
    L: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Write the gradient of dt [B, T, H], and of a in parts [B, K, H]; programs as in `log_decays`.

    The log decay of position t acts on whatever passes from before t to t or later.
    """
    blocks = tl.cdiv(H, BLOCK_H)
    chunk = (tl.program_id(0) // blocks).to(tl.int64)
    first = chunk % K * L
    rows = tl.arange(0, L)
    heads = tl.program_id(0) % blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    held = (heads < H)[:, None] & (rows >= 0)[None, :]
    place = (chunk * H + heads[:, None]) * L + rows[None, :]
    changes = tl.load(reads + place, held, 0.0) - tl.load(within + place, held, 0.0)
    to_end = tl.load(carried + place, held, 0.0)
    through = tl.load(kept + chunk * H + heads, heads < H, 0.0)
    gradient = (
        tl.cumsum(changes, 1, reverse=True) + tl.cumsum(to_end, 1) - to_end + through[:, None]
    )
    step = tl.load(steps + place, held, 0.0)
    tl.store(da + chunk * H + heads, tl.sum(gradient * step, 1), heads < H)
    rate = tl.load(a + heads, heads < H, 0.0).to(tl.float32)
    total = gradient * rate[:, None] + tl.load(direct + place, held, 0.0)
    target = (chunk // K * T + first + rows[None, :]) * H + heads[:, None]
    tl.store(ddt + target, total, held & (first + rows[None, :] < T))
