"""SIGReg: pushes latents towards a standard normal distribution along random directions.

For projections u = z a on unit directions a, the empirical characteristic function is compared with
that of the standard normal, phi(t) = exp(-t^2 / 2), at K knots t:

    statistic = sum_t w_t ((mean_n cos(t u_n) - phi(t))^2 + (mean_n sin(t u_n))^2)

averaged over directions (and over time steps in the per-step form). The released code of LeJEPA multiplies it
by the number of rows N (`times_rows`), so that weights do not transfer between the two. `window=true` uses
trapezoid weights (2 dt inside, dt at the ends, as in #903) times phi; `window=false` uses the plain mean over
knots. Source: Balestriero, LeCun, "LeJEPA" (2025); forms of submissions #903 and #832.
`sigreg_kernels.py` has a faster form for evenly spaced knots.
Legend: N rows of a sample, S samples (time steps), P directions, K knots, D width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from jepa_lm.objective.ranks import sum_over_ranks
from jepa_lm.objective.regularizers import Place, Regularizer
from jepa_lm.objective.sigreg_kernels import Knots, swept_statistic
from jepa_lm.objective.statistics import standardised
from jepa_lm.objective.step_context import Draws, StepContext, draw_now, on_device
from jepa_lm.schedules.factors import Schedule
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, NotNegative, Range, Seed, checked

MIN_STD = 1e-6


def knot_weights(
    low: float, high: float, knots: int, window: bool
) -> tuple[list[float], list[float]]:
    """Return K knots t and their weights w."""
    t = torch.linspace(low, high, knots, dtype=torch.float64, device="cpu")
    if not window:
        return t.tolist(), [1.0 / knots] * knots
    dt = (high - low) / (knots - 1)
    weights = torch.full_like(t, 2 * dt)
    weights[0] = weights[-1] = dt
    return t.tolist(), (weights * torch.exp(-t.square() / 2)).tolist()


def statistic_reference(u: Tensor, t: Knots, weights: Knots, *, joint: bool = False) -> Tensor:
    """Compute the statistic by its formula; projections u [N, ...] -> mean over all dims but N."""
    at = u.new_tensor(t)
    angles = u[..., None] * at  # [N, ..., K]
    cos, sin = angles.cos(), angles.sin()
    if joint:
        sums = torch.cat((cos.sum(0).flatten(), sin.sum(0).flatten(), u.new_full((1,), len(u))))
        totals = sum_over_ranks(sums, replicated=True)
        cos, sin = (totals[:-1] / totals[-1].detach()).view(2, *angles.shape[1:])
    else:
        cos, sin = cos.mean(0), sin.mean(0)  # [..., K]
    errors = (cos - torch.exp(-at.square() / 2)).square() + sin.square()
    return (errors @ u.new_tensor(weights)).mean()


def statistic(u: Tensor, t: Knots, weights: Knots, *, joint: bool = False) -> Tensor:
    """Compute the statistic for evenly spaced knots, and its gradient along with it.

    A compiler gets the formula, which it fuses into a few kernels; it would unroll the sweep into hundreds.

    Args:
        u: projections [N, ...], float32 or float64. t, weights: from `knot_weights`.
        joint: use the rows of all ranks; N may differ between ranks, the other dims may not.
    """
    if torch.compiler.is_compiling():
        return statistic_reference(u, t, weights, joint=joint)
    return swept_statistic(u, t, weights, joint=joint)


class SIGReg(Regularizer):
    """SIGReg as a regularizer.

    Args:
        tensor, weight, schedule: see `Regularizer`.
        dim: D. directions: P, the number of random projections.
        knots, low, high: K knots from low to high. window: weights exp(-t^2 / 2), not equal ones.
        per_step: each time step is a sample whose rows are the batch; else all B N rows are one sample.
        max_steps: maximum number of random time steps in the per-step form, None for all.
        times_rows: multiply by the number of rows of a sample, those of all ranks if the statistic is joint.
        with_replacement: a time step may be drawn twice, as in the script of #903.
        standardise: first scale each dim of the rows to mean 0 and std 1 (unbiased, at least 1e-6),
            with gradients through both; the scale of the latents is then unconstrained.
        fresh: draw new directions for every micro-batch instead of keeping the first ones.
        seed: seed of all draws.

    Raises:
        UserError: fewer than 2 knots, or low is not below high.
    """

    directions: Tensor

    @checked
    def __init__(
        self,
        *,
        tensor: Place,
        weight: NotNegative,
        dim: Count,
        directions: Count,
        knots: Annotated[int, Range(least=2)],
        low: float,
        high: float,
        window: bool,
        per_step: bool,
        max_steps: Count | None,
        standardise: bool,
        fresh: bool,
        seed: Seed,
        times_rows: bool = False,
        with_replacement: bool = False,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(tensor=tensor, weight=weight, schedule=schedule)
        if low >= high:
            raise UserError(f"low={low}, high={high}: low must be below high")
        self.t, self.weights = knot_weights(low, high, knots, window)
        self.dim, self.per_step, self.max_steps = dim, per_step, max_steps
        self.times_rows, self.with_replacement = times_rows, with_replacement
        self.standardise, self.fresh, self.seed = standardise, fresh, seed
        start = unit_directions(dim, directions, torch.Generator().manual_seed(seed))
        self.register_buffer("directions", start)

    def forward(self, x: Tensor, step_context: StepContext) -> Tensor:
        if x.shape[-1] != self.dim:
            raise UserError(
                f"jepa.regularizers: SIGReg has dim={self.dim}, but its latents have {x.shape[-1]} dims"
            )
        if not self.per_step:
            x = x.flatten(0, 1).unsqueeze(1)  # [R, 1, D]
        cut = self._cuts(x.shape[1])
        drawn = list(step_context.drawn)
        if not drawn and (cut or self.fresh):
            drawn = list(draw_now(self.draw, x.shape[1], step_context, x.device))
        if cut:
            x = x[:, drawn.pop(0)]
        if self.standardise:
            x = standardised(x, joint=step_context.joint, min_std=MIN_STD)
        directions = drawn.pop(0) if self.fresh else self.directions
        u = x @ directions.to(x.dtype)
        found = statistic(u, self.t, self.weights, joint=step_context.joint)
        return found * self._rows(x, step_context) if self.times_rows else found

    def _rows(self, x: Tensor, step_context: StepContext) -> Tensor:
        """Return the number of rows of a sample x [R, S, D]."""
        rows = x.new_tensor(float(len(x)))
        return sum_over_ranks(rows) if step_context.joint else rows

    def _cuts(self, latents: int) -> bool:
        """Return whether only some time steps of so many are used."""
        return self.per_step and self.max_steps is not None and latents > self.max_steps

    def draw(self, latents: int, step_context: StepContext, device: torch.device) -> Draws:
        """Draw the time steps [max_steps] that are used now, and new directions [D, P], where needed."""
        drawn = []
        if self._cuts(latents):
            assert self.max_steps is not None
            generator = step_context.generator(self.seed, "sigreg steps")
            if self.with_replacement:
                steps = torch.randint(latents, (self.max_steps,), generator=generator)
            else:
                steps = torch.randperm(latents, generator=generator)[: self.max_steps]
            drawn.append(on_device(steps, device))
        if self.fresh:
            generator = step_context.generator(self.seed, "sigreg directions")
            directions = unit_directions(self.dim, self.directions.shape[1], generator)
            drawn.append(on_device(directions, device))
        return tuple(drawn)


def unit_directions(dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Return random unit vectors as the columns of [D, P]."""
    return torch.nn.functional.normalize(torch.randn(dim, count, generator=generator), dim=0)
