"""Statistics of paired seeds: against independent formulas, and by simulated studies."""

from __future__ import annotations

import itertools
import math
from statistics import mean, stdev

import numpy as np
import pytest
from scipy import integrate, stats

from jepa_lm.study.family import Adjusted, Claim, adjust, holm
from jepa_lm.study.paired import (
    MOST_FLIPPED,
    below_test,
    bootstrap_interval,
    equivalence_test,
    paired_test,
    sign_flip_test,
    t_interval,
    tail_test,
)
from jepa_lm.study.power import power, smallest_effect
from jepa_lm.study.solved import LEAST_SEEDS, SolvedSeeds, fisher_test, solved_seeds
from jepa_lm.study.statistics import RULE_NATS, TAIL, Effect, effect

STUDIES = 2000
CONTROL = {"0": 1.70, "1": 1.72, "2": 1.69, "3": 1.75, "10": 1.71}
TREATMENT = {"10": 1.695, "0": 1.693, "1": 1.709, "2": 1.688, "3": 1.733}
DIFFERENCES = (-0.007, -0.011, -0.002, -0.017, -0.015)


def by_seed(values) -> dict[str, float]:
    return {str(i): float(v) for i, v in enumerate(values)}


def from_differences(differences, **options) -> Effect:
    return effect(
        by_seed(1.7 + np.asarray(differences)), by_seed(np.full(len(differences), 1.7)), **options
    )


def assert_rate(found: np.ndarray, rate: float) -> None:
    """Check that a share of simulated studies is within its 99.9 % binomial interval."""
    low, high = stats.binom.interval(0.999, len(found), rate)
    assert low <= found.sum() <= high, f"{found.mean()} instead of {rate}"


def assert_at_most(found: np.ndarray, rate: float) -> None:
    assert found.sum() <= stats.binom.ppf(0.9995, len(found), rate), f"{found.mean()} above {rate}"


def simulated(n: int, *, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, std, (STUDIES, n))


# Known values


def test_an_effect_by_hand():
    found = effect(TREATMENT, CONTROL)
    n, m, s = 5, mean(DIFFERENCES), stdev(DIFFERENCES)
    assert found.seeds == ("0", "1", "2", "3", "10")
    assert found.differences == pytest.approx(DIFFERENCES)
    assert (found.mean, found.std) == pytest.approx((m, s))
    half = 2.7764451 * s / math.sqrt(n)  # the 97.5 % point of Student's t with 4 degrees of freedom
    assert found.interval == pytest.approx((m - half, m + half), rel=1e-6)
    assert found.p_paired == pytest.approx(2 * stats.t.sf(abs(m) * math.sqrt(n) / s, n - 1))
    a, b = TREATMENT.values(), CONTROL.values()
    va, vb = stdev(a) ** 2 / n, stdev(b) ** 2 / n
    freedom = (va + vb) ** 2 / ((va**2 + vb**2) / (n - 1))
    assert found.p_welch == pytest.approx(
        2 * stats.t.sf(abs(mean(a) - mean(b)) / (va + vb) ** 0.5, freedom)
    )
    low, high = found.bootstrap
    assert found.interval[0] < low < m < high < found.interval[1]
    assert min(DIFFERENCES) < low
    assert found.p_rule is None


@pytest.mark.parametrize("shift", [-0.02, -0.006, -0.001, 0.0, 0.004, 0.02])
def test_the_equivalence_test_by_hand(shift):
    d = shift + np.array([-0.002, 0.001, 0.003, -0.001, -0.001])
    error = d.std(ddof=1) / math.sqrt(5)
    expected = max(
        stats.t.cdf((d.mean() - 0.005) / error, 4), stats.t.sf((d.mean() + 0.005) / error, 4)
    )
    assert from_differences(d).p_equivalent == pytest.approx(expected)
    wider = from_differences(d, margin=0.03)
    assert wider.margin == 0.03
    assert wider.p_equivalent < expected


def test_the_rule_by_hand_and_its_direction():
    gains = np.array([0.011, 0.009, 0.013, 0.008])
    control = np.array([2.31, 2.33, 2.29, 2.30])
    options = dict(nll_treatment=by_seed(control - gains), nll_control=by_seed(control))
    found = from_differences([-0.004, -0.003, -0.005, -0.002], **options)
    t = (gains.mean() - RULE_NATS) / (gains.std(ddof=1) / 2)
    assert found.p_rule == pytest.approx(stats.t.sf(t, 3))
    assert found.mean_nats == pytest.approx(-gains.mean())
    worse = dict(nll_treatment=by_seed(control + gains), nll_control=by_seed(control))
    harm = from_differences([0.004, 0.003, 0.005, 0.002], **worse)
    assert harm.p_rule > 0.99
    assert harm.p_rule_harm == pytest.approx(found.p_rule)
    assert (found.meets_rule, harm.meets_rule) == (found.p_rule < 0.01,) * 2


def test_holm_on_a_worked_example():
    """0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 raised to the one before."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "untested": None})
    assert [found[name] for name in "abcd"] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert found.keys() == set("abcd")
    assert holm({"x": 0.4, "y": 0.9})["x"] == 0.8
    assert holm({"x": 0.7, "y": 0.9})["x"] == 1.0
    assert holm({}) == {}


def test_treatments_that_are_the_same_runs_count_once():
    one, same, other = Claim(0.02, 0.5, "a"), Claim(0.02, 0.5, "a"), Claim(0.3, 0.01, "b")
    found = adjust({"one": one, "same": same, "other": other})
    assert found["one"] == found["same"] == Adjusted(0.04, 0.5, 2)
    assert found["other"] == Adjusted(0.3, 0.02, 2)
    assert adjust({"one": one}) == {"one": Adjusted(0.02, 0.5, 1)}
    assert adjust({"one": one, "few": Claim()})["one"] == Adjusted(0.02, 0.5, 1)


@pytest.mark.parametrize("n", [2, 5, 9])
def test_sign_flips_by_hand(n):
    d = np.random.default_rng(n).normal(0.3, 1.0, n)
    flipped = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True)))
        for signs in itertools.product((1, -1), repeat=n)
    ]
    assert sign_flip_test(d) == np.mean([x >= abs(d.sum()) - 1e-12 for x in flipped])
    assert sign_flip_test(np.abs(d)) == 2.0 ** (1 - n)  # the smallest there is
    assert from_differences(d).p_flips == pytest.approx(sign_flip_test(d))


def test_random_sign_flips_agree_with_all_of_them(monkeypatch):
    d = np.random.default_rng(1).normal(0.5, 1.0, MOST_FLIPPED)
    exact = sign_flip_test(d)
    monkeypatch.setattr("jepa_lm.study.paired.MOST_FLIPPED", MOST_FLIPPED - 1)
    assert sign_flip_test(d) == pytest.approx(exact, abs=4 * math.sqrt(exact / 100_000))
    assert sign_flip_test(np.linspace(1, 2, 40)) == 1 / 100_001  # never 0


def test_halls_transformation_by_hand():
    d = np.array([0.001, 0.0, -0.001, 0.0005, 0.006])
    n, m, s = 5, d.mean(), d.std(ddof=1)
    g = stats.skew(d)
    p = []
    for sign in (1, -1):
        skewness = sign * g
        z = (sign * m - 0.005) / s
        t = ((1 + skewness * z / 3) ** 3 - 1) / skewness + skewness / (6 * n)
        p.append(stats.t.cdf(math.sqrt(n) * t, n - 1))
    assert tail_test(d, 0.005) == pytest.approx(max(p))
    found = from_differences(d, resamples=0)
    assert found.p_same == pytest.approx(max(found.p_equivalent, min(1, TAIL * max(p))))
    assert tail_test(d[:, None] * 0 + [[-1.0, 0.0, 1.0]], 9.0).shape == (5,)


def power_by_integration(effect: float, std: float, n: int, alpha: float) -> float:
    """The normal mean given the spread, averaged over the chi distribution of the spread."""
    critical, shift = stats.t.isf(alpha / 2, n - 1), effect / std * math.sqrt(n)

    def given(spread: float) -> float:
        edge = critical * spread / math.sqrt(n - 1)
        tails = stats.norm.sf(edge - shift) + stats.norm.cdf(-edge - shift)
        return stats.chi.pdf(spread, n - 1) * tails

    return integrate.quad(given, 0, math.sqrt(n - 1) + 12, limit=200)[0]


@pytest.mark.parametrize("n", [2, 3, 5, 10, 100])
@pytest.mark.parametrize("size", [0.0, 0.3, 1.0, -2.5, 9.0])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_power_agrees_with_integration(n, size, alpha):
    assert power(size, 1.0, n, alpha) == pytest.approx(
        power_by_integration(size, 1.0, n, alpha), abs=1e-7
    )


def test_power_on_known_values():
    assert power(0.5, 1.0, 34) == pytest.approx(0.80778, abs=1e-5)  # G*Power 3.1, two-sided
    assert power(0.0, 1.0, 4) == pytest.approx(0.05)
    assert power(0.01, 0.005, 6) == power(-2.0, 1.0, 6)
    assert power(1e6, 1.0, 3) == pytest.approx(1.0)
    for std, n in ((0.0, 5), (math.nan, 5), (1.0, 1)):
        with pytest.raises(ValueError, match="above 0"):
            power(1.0, std, n)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
@pytest.mark.parametrize("size", [0.1, -0.5, 1.3])
def test_the_smallest_effect_and_the_seeds_needed_invert_power(n, size):
    noise = stats.zscore(np.cos(2 * np.arange(n)), ddof=1)
    found = from_differences(0.01 * (size + noise))
    assert power(smallest_effect(found.std, n, 0.05), found.std, n) == pytest.approx(0.8)
    assert power(smallest_effect(1.0, n, 0.01), 1.0, n, 0.01) == pytest.approx(0.8)
    assert power(smallest_effect(1.0, n, 0.05, tests=4), 1.0, n) == pytest.approx(0.95)
    needed = found.seeds_needed
    assert power(found.mean, found.std, needed) >= 0.8
    assert power(found.mean, found.std, needed - 1) < 0.8


def test_seeds_needed_at_its_ends():
    assert from_differences([1e-4, -1e-4, 1e-6]).seeds_needed is None
    assert from_differences([0.01, 0.0100001, 0.0099999]).seeds_needed == 3
    unit = np.array([-1.0, 1.0]) / math.sqrt(2)  # its standard deviation is 1
    assert from_differences(0.5 + unit).seeds_needed == 34  # G*Power, as above


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_tests_agree_with_scipys_own(n):
    rows = simulated(n, mean=0.4)[:20]
    for p, interval, row in zip(paired_test(rows), t_interval(rows).T, rows, strict=True):
        theirs = stats.ttest_1samp(row, 0.0)
        assert p == pytest.approx(theirs.pvalue)
        assert interval == pytest.approx(tuple(theirs.confidence_interval()))
    below = stats.ttest_1samp(rows, 0.7, axis=1, alternative="less").pvalue
    assert below_test(rows, 0.7) == pytest.approx(below)


# Unequal groups and degenerate cases


def test_pairs_are_the_common_seeds_and_welch_takes_all():
    found = effect({**TREATMENT, "77": 1.9}, {**CONTROL, "5": 1.6})
    plain = effect(TREATMENT, CONTROL)
    assert found.seeds == plain.seeds
    assert found.p_paired == plain.p_paired
    assert found.p_welch != plain.p_welch
    assert found.p_welch == pytest.approx(
        stats.ttest_ind(
            [*TREATMENT.values(), 1.9], [*CONTROL.values(), 1.6], equal_var=False
        ).pvalue
    )


def test_the_order_of_seeds_does_not_matter_and_reports_repeat():
    found = effect(TREATMENT, CONTROL)
    assert effect(dict(sorted(TREATMENT.items())), dict(reversed(CONTROL.items()))) == found
    values = np.random.default_rng(0).normal(size=12)
    assert bootstrap_interval(values, 1000) == bootstrap_interval(values[::-1], 1000)


def test_fishers_test_is_scipys_and_that_of_worked_examples():
    for solved, of, others, of_others in itertools.product(range(5), (4, 6), range(4), (3, 7)):
        table = [[solved, of - solved], [others, of_others - others]]
        expected = stats.fisher_exact(table, alternative="greater").pvalue
        assert fisher_test(solved, of, others, of_others) == pytest.approx(expected, rel=1e-12)
    assert round(fisher_test(4, 5, 0, 5), 3) == 0.024
    assert round(fisher_test(5, 6, 0, 6), 4) == 0.0076
    assert round(fisher_test(5, 8, 0, 8), 3) == 0.013


def test_solved_seeds_are_counted_above_the_threshold_and_on_the_side_of_what_was_seen():
    counts = solved_seeds([0.95, 0.951, 1.0], [0.0, 0.2, 0.96, 0.5])
    assert counts == (2, 3, 1, 4)
    assert counts.more
    assert counts.p == fisher_test(2, 3, 1, 4)
    assert SolvedSeeds(1, 4, 2, 3).p == fisher_test(2, 3, 1, 4)
    assert SolvedSeeds(2, 3, 3, 9).more  # shares, not counts
    assert not SolvedSeeds(3, 9, 2, 3).more
    assert SolvedSeeds(1, 5, 0, 5).enough == 4
    assert SolvedSeeds(0, 3, 0, 2).enough is None
    assert SolvedSeeds(0, LEAST_SEEDS, 0, LEAST_SEEDS).enough == LEAST_SEEDS
    assert SolvedSeeds(0, LEAST_SEEDS - 1, 0, LEAST_SEEDS - 1).enough is None


def test_identical_sides_are_equivalent():
    found = effect(CONTROL, CONTROL, nll_treatment=CONTROL, nll_control=CONTROL)
    assert found.identical
    assert (found.mean, found.std) == (0.0, 0.0)
    assert (found.p_paired, found.p_equivalent, found.p_rule) == (1.0, 0.0, 1.0)
    assert found.p_welch == pytest.approx(1.0)
    assert found.interval == found.bootstrap == (0.0, 0.0)
    assert (found.p_flips, found.p_tail, found.p_same) == (1.0, 0.0, 0.0)
    assert found.seeds_needed is None


@pytest.mark.parametrize("shift", [0.01, -0.3, 1e-3])
def test_a_constant_difference_leaves_nothing_to_test(shift):
    """Rounding of the scores must not count as spread: it would make p arbitrarily small."""
    control = by_seed(1.5 + np.sin(np.arange(8)))
    shifted = {seed: score + shift for seed, score in control.items()}
    assert len({shifted[s] - control[s] for s in control}) > 1
    found = effect(shifted, control, nll_treatment=shifted, nll_control=control)
    assert found.mean == pytest.approx(shift)
    assert found.std == 0.0
    assert (found.p_paired, found.p_equivalent, found.p_rule) == (None, None, None)
    assert (found.interval, found.bootstrap, found.p_flips) == (None, None, None)
    assert found.p_welch is not None


def test_groups_without_spread():
    same, other = by_seed([1.7] * 3), by_seed([1.8] * 3)
    assert effect(same, same).p_welch == 1.0
    assert effect(same, other).p_welch is None


def test_few_seeds():
    none = effect({"0": 1.7}, {"1": 1.7})
    assert (none.n, none.mean, none.std, none.p_paired, none.identical) == (
        0,
        None,
        None,
        None,
        False,
    )
    assert effect({}, {}) == Effect()
    one = effect({"0": 1.7}, {"0": 1.8, "1": 1.9})
    assert (one.n, one.std, one.p_paired, one.p_welch) == (1, None, None, None)
    assert one.mean == pytest.approx(-0.1)
    assert effect({"0": 1.7}, {"0": 1.7}).p_paired is None
    two = from_differences([0.01, 0.02])
    assert two.p_paired is not None
    assert two.bootstrap is None


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_have_to_be_finite(score):
    bad = {**CONTROL, "3": score}
    for options in (dict(), dict(nll_treatment=CONTROL, nll_control=bad)):
        with pytest.raises(ValueError, match="seed 3"):
            effect(CONTROL, CONTROL if options else bad, **options)
    with pytest.raises(ValueError, match="margin"):
        effect(CONTROL, CONTROL, margin=0.0)


# Simulated studies


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_false_positives_are_nominal(n, alpha):
    assert_rate(paired_test(simulated(n)) < alpha, alpha)


def test_whole_effects_agree_with_the_tests_on_many_rows():
    """The simulations test the same code that `effect` reports."""
    rows = simulated(5, std=0.01)[:50]
    for p, equivalent, row in zip(
        paired_test(rows), equivalence_test(rows, 0.005), rows, strict=True
    ):
        found = from_differences(row, resamples=0)
        assert found.p_paired == pytest.approx(p)
        assert found.p_equivalent == pytest.approx(equivalent)
        assert found.bootstrap is None


@pytest.mark.parametrize(("n", "size"), [(3, 1.5), (5, 1.0), (5, -2.0), (10, 0.7)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_power_matches_theory(n, size, alpha):
    assert_rate(paired_test(simulated(n, mean=size)) < alpha, power(size, 1.0, n, alpha))


@pytest.mark.parametrize("n", [3, 8])
def test_the_interval_covers(n):
    low, high = t_interval(simulated(n, mean=0.3))
    assert_rate((low < 0.3) & (high > 0.3), 0.95)


@pytest.mark.parametrize(("n", "documented"), [(3, 0.72), (5, 0.84), (10, 0.90)])
def test_the_bootstrap_is_as_narrow_as_documented(n, documented):
    rows = simulated(n)
    intervals = np.array([bootstrap_interval(row, 500) for row in rows])
    covered = (intervals[:, 0] < 0) & (intervals[:, 1] > 0)
    assert covered.mean() == pytest.approx(documented, abs=0.03)


@pytest.mark.parametrize("n", [3, 6])
def test_the_rule_errs_as_often_as_it_says_at_its_boundary(n):
    p = below_test(simulated(n, mean=-RULE_NATS, std=0.002), -RULE_NATS)
    assert_rate(p < 0.01, 0.01)
    less = below_test(simulated(n, mean=-0.6 * RULE_NATS, std=0.002), -RULE_NATS)
    assert_at_most(less < 0.01, 0.01)


@pytest.mark.parametrize("edge", [0.005, -0.005])
def test_the_equivalence_test_errs_as_often_as_it_says_at_the_margin(edge):
    assert_rate(equivalence_test(simulated(5, mean=edge, std=0.001), 0.005) < 0.05, 0.05)
    assert_at_most(equivalence_test(simulated(5, mean=edge, std=0.02), 0.005) < 0.05, 0.05)
    assert np.mean(equivalence_test(simulated(5, std=0.001), 0.005) < 0.05) > 0.99


def test_holm_keeps_the_errors_of_a_family():
    """Four treatments without effect that share a baseline: any error in 5 % at most."""
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(STUDIES, 1, 5))
    p = paired_test(shared - rng.normal(size=(STUDIES, 4, 5)))
    wrong = np.array([min(holm(dict(enumerate(row))).values()) < 0.05 for row in p])
    assert_at_most(wrong, 0.05)
    assert (p < 0.05).any(axis=1).mean() > 0.1  # the rate without the correction


@pytest.mark.parametrize(("n", "most"), [(3, 0.06), (4, 0.06), (5, 0.055), (8, 0.045), (20, 0.035)])
def test_long_tails_are_seldom_called_equal(n, most):
    """Exponential differences at the margin; Student's test alone errs in 11 to 16 %."""
    rng = np.random.default_rng(n)
    d = 0.002 + 0.003 * rng.exponential(size=(20_000, n))
    for rows in (d, -d):
        student, tail = equivalence_test(rows, 0.005), tail_test(rows, 0.005)
        assert 0.1 < np.mean(student < 0.05) < 0.18
        assert np.mean((student < 0.05) & (TAIL * tail < 0.05)) < most


def test_pairing_finds_what_welch_misses():
    """Planted bug: an unpaired test where the spread between seeds exceeds the effect."""
    rng = np.random.default_rng(2)
    seeds = 1.7 + 0.03 * rng.normal(size=(200, 5))
    noise = 0.003 * rng.normal(size=(2, 200, 5))
    found = [
        effect(by_seed(a), by_seed(b), resamples=0)
        for a, b in zip(seeds - 0.01 + noise[0], seeds + noise[1], strict=True)
    ]
    paired = np.mean([e.p_paired < 0.05 for e in found])
    welch = np.mean([e.p_welch < 0.05 for e in found])
    assert paired > 0.9
    assert welch < 0.2
