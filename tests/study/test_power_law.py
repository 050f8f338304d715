"""Power laws of losses: planted parameters come back, and nothing is read off beyond the ladder."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from jepa_lm.study.power_law import EXPONENTS, Law, fit, laws

X = np.array([0.0, 0.6, 1.1, 1.7])
"""log10 of the compute of four rungs, relative to the smallest."""


def law(floor: float, factor: float, exponent: float) -> Law:
    return Law(*map(np.array, (floor, factor, exponent)))


@pytest.mark.parametrize(
    ("floor", "factor", "exponent"),
    [(1.2, 0.8, 0.3), (0.0, 2.5, 0.08), (2.0, 0.3, 1.4), (0.5, 1.5, 0.15)],
)
def test_planted_parameters_come_back(floor, factor, exponent):
    found = fit(X, law(floor, factor, exponent).at(X))
    np.testing.assert_allclose(found.exponent, exponent, rtol=0.002)
    np.testing.assert_allclose([found.floor, found.factor], [floor, factor], atol=0.006)


def test_it_is_the_least_squares_fit():
    """Of noisy losses, against a general optimizer from the planted parameters."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        losses = law(1.2, 0.8, 0.4).at(X) + rng.normal(scale=0.01, size=4)
        plain = optimize.least_squares(
            lambda p, losses=losses: p[0] + p[1] * 10 ** (-p[2] * X) - losses,
            [1.2, 0.8, 0.4],
            bounds=([0, 0, EXPONENTS[0]], [np.inf, np.inf, EXPONENTS[1]]),
            xtol=1e-12,
            ftol=1e-12,
        )
        missed = float(((fit(X, losses).at(X) - losses) ** 2).sum())
        assert missed <= 2 * plain.cost * (1 + 1e-4) + 1e-9


def test_many_curves_are_fitted_as_one_is():
    losses = np.stack([law(1.0, a, 0.3).at(X) for a in (0.5, 1.0, 1.5)])
    together = fit(X, losses)
    for i, alone in enumerate(losses):
        assert [part[i] for part in together] == list(fit(X, alone))


def test_losses_that_rise_or_bend_upward_have_a_floor_of_zero_or_no_factor():
    rises = fit(X, np.array([1.0, 1.1, 1.2, 1.3]))
    assert (float(rises.factor), float(rises.floor)) == (0.0, pytest.approx(1.15))
    straight = fit(X, 3.0 - 0.9 * X)  # falls ever faster, relative to what is left
    assert float(straight.floor) == 0.0


def seeds(curve: Law, rng, n: int = 6, noise: float = 0.002) -> np.ndarray:
    return curve.at(X) + rng.normal(scale=noise, size=(n, len(X)))


def test_the_compute_multiplier_is_read_off_within_the_ladder():
    rng = np.random.default_rng(5)
    baseline = law(1.0, 1.0, 0.4)
    halved = law(1.0, 1.0 * 2**-0.4, 0.4)  # what the baseline reaches with twice the compute
    found = laws(11.0 + X, seeds(halved, rng), seeds(baseline, rng))
    assert found.multiplier == pytest.approx(2.0, rel=0.06)
    low, high = found.multipliers
    assert low < 2.0 < high
    turned = laws(11.0 + X, seeds(baseline, rng), seeds(halved, rng))
    assert turned.multiplier == pytest.approx(0.5, rel=0.06)


def test_a_loss_from_beyond_the_ladder_is_a_bound_and_no_number():
    """The treatment is better at the smallest rung than the baseline at the largest, or the reverse."""
    rng = np.random.default_rng(6)
    low, high = law(1.0, 0.1, 0.4), law(1.6, 1.0, 0.4)
    ahead = laws(11.0 + X, seeds(low, rng), seeds(high, rng))
    assert (ahead.multiplier, ahead.multipliers) == (np.inf, (np.inf, np.inf))
    behind = laws(11.0 + X, seeds(high, rng), seeds(low, rng))
    assert (behind.multiplier, behind.multipliers) == (0.0, (0.0, 0.0))


def test_intervals_hold_the_parameters_of_many_seeds_and_narrow_with_them():
    rng = np.random.default_rng(7)
    curve = law(1.2, 0.8, 0.3)
    few, many = (laws(11.0 + X, seeds(curve, rng, n), seeds(curve, rng, n)) for n in (10, 160))
    for side in (many.treatment, many.baseline):
        assert side.exponent[0] < 0.3 < side.exponent[1]
        assert side.floor[0] < 1.2 < side.floor[1]
        assert side.residual < 0.002
    assert np.ptp(many.baseline.exponent) < np.ptp(few.baseline.exponent)
    same = laws(
        11.0 + X, seeds(curve, np.random.default_rng(8)), seeds(curve, np.random.default_rng(9))
    )
    again = laws(
        11.0 + X, seeds(curve, np.random.default_rng(8)), seeds(curve, np.random.default_rng(9))
    )
    assert same == again


def test_three_rungs_or_one_seed_are_too_few():
    losses = law(1.2, 0.8, 0.3).at(X) * np.ones((5, 1))
    assert laws(X[:3], losses[:, :3], losses[:, :3]) is None
    assert laws(X, losses[:1], losses[:1]) is None
