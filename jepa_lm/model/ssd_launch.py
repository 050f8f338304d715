"""Launches of the Triton kernels of the SSD scan.

Forward: what each chunk adds to the state; the states at the borders, passed on from chunk to chunk; the
outputs, from the state before each chunk and the positions inside it. Backward: the same way in reverse
for the gradients of states, then the gradients of the inputs. No [L, L] matrix reaches memory: the
backward pass computes scores and decays again from the inputs and keeps only the states before the chunks.
Nothing is tuned at run time: tiles follow from the shape. Triton is imported only to launch.
Equations in `ssd_kernels`.
Legend: B batch, T positions, H heads, P head width, G groups, N state size, K chunks, L positions of a
chunk, R heads per group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_LENGTHS = (16, 32, 64, 128)
"""L: the shortest that holds the text, or the longest. Longer chunks mean fewer states in memory."""
MAX_WIDTH = 128
"""Largest P and N; a program holds whole rows and whole states."""
INNER = 32
"""Positions read at a time by a program that holds the rows of others, at most."""
MIN_BLOCK = 16
"""Smallest side of a tile in a product of Triton."""
STATE_BLOCK = 1024
"""Entries of a state that one program passes on."""
HEAD_BLOCK = 16
"""Heads of a program that only handles scalars of positions."""
PROGRAMS = 2048
"""Programs wanted for the gradients of b and c, some four per slot of a large GPU. Heads of a group share a
program, unless there would be too few programs."""


class Launch(NamedTuple):
    """How a kernel is compiled."""

    stages: int
    registers: int
    """Registers per thread at the sizes of #903 in bfloat16, at most; a test compiles and compares."""


LAUNCHES = {
    "log_decays": Launch(1, 64),
    "chunk_states": Launch(2, 104),
    "pass_states": Launch(2, 40),
    "scan_chunks": Launch(2, 144),
    "column_gradients": Launch(1, 255),
    "row_gradients": Launch(1, 232),
    "step_gradients": Launch(1, 80),
}
"""By name of the kernel."""


class Sizes(NamedTuple):
    """Sizes of a scan; see the legend of the module."""

    B: int
    T: int
    H: int
    P: int
    G: int
    N: int
    L: int

    @classmethod
    def of(cls, x: Tensor, b: Tensor) -> Sizes:
        """x [B, T, H, P], b [B, T, G, N]."""
        B, T, H, P = x.shape
        L = next((n for n in CHUNK_LENGTHS if n >= T), CHUNK_LENGTHS[-1])
        return cls(B, T, H, P, b.shape[2], b.shape[3], L)

    @property
    def K(self) -> int:  # noqa: N802 - as the other sizes
        return _blocks(self.T, self.L)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """T, H, K and R, which the kernels take at run time."""
        return self.T, self.H, self.K, self.H // self.G

    def tiles(self, rows: int) -> int:
        """Return the number of tiles of `rows` positions in all chunks."""
        return self.B * self.K * (self.L // rows)


def forward(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan; arguments as of `jepa_lm.model.ssd.ssd`, x, b and c in one dtype.

    Returns:
        y [B, T, H, P] in the dtype of x, the state [B, H, P, N] float32 after the last position, and the
        states [B, K, H, P, N] before the chunks.
    """
    from jepa_lm.model import ssd_kernels as kernels

    x, b, c = (_rows_contiguous(v) for v in (x, b, c))
    sizes = Sizes.of(x, b)
    tiles = _scan_tiles(sizes, x.dtype)
    y, (last, states) = x.new_empty(x.shape), empty_states(x, b)
    with torch.cuda.device_of(x):
        steps, decays = _log_decays(dt, a, sizes)
        _add_up(states, x, b, steps, decays, backward=False)
        _pass_on(states, decays, state, last)
        _launch(
            kernels.scan_chunks, sizes.tiles(tiles["ROWS"]) * sizes.H,
            x, b, c, steps, decays, states, y, *sizes.counts, *_strides(x, b, c), **tiles,
        )  # fmt: skip
    return y, last, states


def backward(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    states: Tensor,
    dy: Tensor | None,
    d_last: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, dt, a, b, c and the first state [B, H, P, N], in their shapes and dtypes.

    Args:
        states: states before the chunks, from `forward`.
        dy, d_last: gradients of y and of the state after the last position; None for zeros.
    """
    dy = torch.zeros_like(x) if dy is None else dy
    x, b, c, dy = (_rows_contiguous(v) for v in (x, b, c, dy))
    with torch.cuda.device_of(x):
        steps, decays = _log_decays(dt, a, Sizes.of(x, b))
        d_first, after = empty_states(x, b)
        _add_up(after, dy, c, steps, decays, backward=True)
        kept = _pass_on(after, decays, d_last, d_first, before=states).sum(0)
        dx, db, dc, scalars = _input_gradients(x, b, c, dy, steps, decays, states, after)
        ddt, da = _step_gradients(dt, a, steps, scalars, kept)
    return dx, ddt, da, db, dc, d_first


def _log_decays(dt: Tensor, a: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Return dt and its cumulative log decays within chunks, [B, K, H, L] float32."""
    from jepa_lm.model import ssd_kernels as kernels

    B, T, H, _, _, _, L = sizes
    steps = torch.empty(B, sizes.K, H, L, dtype=torch.float32, device=dt.device)
    decays = torch.empty_like(steps)
    _launch(
        kernels.log_decays, B * sizes.K * _blocks(H, HEAD_BLOCK),
        dt, a.contiguous(), steps, decays, T, H, sizes.K, *dt.stride(), L=L, BLOCK_H=HEAD_BLOCK,
    )  # fmt: skip
    return steps, decays


def _add_up(
    states: Tensor, x: Tensor, b: Tensor, steps: Tensor, decays: Tensor, *, backward: bool
) -> None:
    """Fill `states` [B, K, H, P, N] with what each chunk adds; x and b are dy and c if `backward`."""
    from jepa_lm.model import ssd_kernels as kernels

    sizes = Sizes.of(x, b)
    _launch(
        kernels.chunk_states, sizes.B * sizes.K * sizes.H,
        x, b, steps, decays, states, *sizes.counts, *_strides(x, b),
        BACKWARD=backward, **_tiles(sizes, x.dtype),
    )  # fmt: skip


def _pass_on(
    states: Tensor,
    decays: Tensor,
    start: Tensor | None,
    last: Tensor,
    before: Tensor | None = None,
) -> Tensor:
    """Pass `states` [B, K, H, P, N] on in place, from `start` to `last` [B, H, P, N].

    Args:
        before: states before the chunks, if `states` are gradients, which are passed on in reverse.

    Returns:
        exp(g_L) times the product of each gradient and the state before the chunk, in parts [parts, B, K, H].
    """
    from jepa_lm.model import ssd_kernels as kernels

    B, K, H, L = decays.shape
    size = states.shape[3] * states.shape[4]
    blocks = _blocks(size, STATE_BLOCK)
    kept = decays.new_empty(0 if before is None else blocks, B, K, H)
    _launch(
        kernels.pass_states, B * H * blocks,
        states, decays, last if start is None else start.contiguous(), last,
        states if before is None else before, kept, H, K, size, B * K * H,
        L=L, BLOCK=STATE_BLOCK, STARTS=start is not None, REVERSE=before is not None,
    )  # fmt: skip
    return kept


def _input_gradients(
    x: Tensor,
    b: Tensor,
    c: Tensor,
    dy: Tensor,
    steps: Tensor,
    decays: Tensor,
    states: Tensor,
    after: Tensor,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Return the gradients of x, b and c, and the scalars [B, K, H, L] that `_step_gradients` needs.

    `after` are the gradients of the states after the chunks.
    """
    from jepa_lm.model import ssd_backward_kernels as kernels

    sizes = Sizes.of(x, b)
    tiles = _scan_tiles(sizes, x.dtype)
    programs = sizes.tiles(tiles["ROWS"]) * sizes.G
    parts = min(sizes.H // sizes.G, _blocks(PROGRAMS, programs))
    dx, db, dc = x.new_empty(x.shape), _empty_parts(b, parts), _empty_parts(c, parts)
    reads, within, carried, direct = (torch.empty_like(steps) for _ in range(4))
    inputs = (x, b, c, dy, steps, decays)
    shape = (*sizes.counts, sizes.G, *_strides(x, b, c, dy), parts, b.numel())
    _launch(
        kernels.column_gradients, programs * parts,
        *inputs, after, dx, db, within, carried, direct, *shape, **tiles,
    )  # fmt: skip
    _launch(
        kernels.row_gradients, programs * parts,
        *inputs, states, dc, reads, *shape, **tiles,
    )  # fmt: skip
    if parts > 1:
        db, dc = (v.sum(0).to(b.dtype) for v in (db, dc))
    return dx, db, dc, (reads, within, carried, direct)


def _step_gradients(
    dt: Tensor, a: Tensor, steps: Tensor, scalars: tuple[Tensor, ...], kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of dt and a."""
    from jepa_lm.model import ssd_backward_kernels as kernels

    B, K, H, L = steps.shape
    ddt, da = dt.new_empty(dt.shape), torch.empty_like(kept)
    _launch(
        kernels.step_gradients, B * K * _blocks(H, HEAD_BLOCK),
        a.contiguous(), steps, *scalars, kept, ddt, da, dt.shape[1], H, K, L=L, BLOCK_H=HEAD_BLOCK,
    )  # fmt: skip
    return ddt, da.sum((0, 1)).to(a.dtype)


def _launch(kernel: Any, programs: int, *arguments: Any, warps: int = 4, **constants: Any) -> None:
    stages = LAUNCHES[kernel.__name__].stages
    kernel[(programs,)](*arguments, num_warps=warps, num_stages=stages, **constants)


def _tiles(sizes: Sizes, dtype: torch.dtype) -> dict[str, int]:
    """Return the sizes of tiles, which the registers of a GPU limit, and the warps that hold them.

    Float32 needs smaller ones, because its products use no tensor cores.
    """
    wide = max(sizes.P, sizes.N) > 64
    rows = 64
    if dtype == torch.float32:
        rows = 16 if wide else 32
    return dict(
        L=sizes.L,
        P=sizes.P,
        N=sizes.N,
        ROWS=min(sizes.L, rows),
        BLOCK_P=_power_of_two(sizes.P),
        BLOCK_N=_power_of_two(sizes.N),
        warps=8 if wide or dtype == torch.float32 else 4,
    )


def _scan_tiles(sizes: Sizes, dtype: torch.dtype) -> dict[str, int]:
    """Return also how many positions are read at a time by a program that holds the rows of others."""
    tiles = _tiles(sizes, dtype)
    return tiles | dict(INNER=min(INNER, tiles["ROWS"]))


def _power_of_two(width: int) -> int:
    return max(MIN_BLOCK, 1 << (width - 1).bit_length())


def _blocks(count: int, block: int) -> int:
    return (count + block - 1) // block


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Return the strides of [B, T, H or G, P or N], except the last, which is 1."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _empty_parts(x: Tensor, parts: int) -> Tensor:
    """Return room for a gradient of x, or for parts of it in float32."""
    return x.new_empty(x.shape) if parts == 1 else x.new_empty(parts, *x.shape, dtype=torch.float32)


def empty_states(x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return room for the last state [B, H, P, N], and for the states before the chunks [B, K, H, P, N].

    The latter are kept in bfloat16 for inputs in it, in which products read them anyway; float16 lacks the
    range.
    """
    sizes = Sizes.of(x, b)
    B, _, H, P, _, N, _ = sizes
    stored = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    return (
        x.new_empty(B, H, P, N, dtype=torch.float32),
        x.new_empty(B, sizes.K, H, P, N, dtype=stored),
    )
