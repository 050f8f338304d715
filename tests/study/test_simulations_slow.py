"""How often simulated studies get a wrong word, and how often a true effect gets its own.

The words of thousands of studies are computed at once; `words` is held against `verdict` in the first test.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats

from jepa_lm.study.anytime import TAIL as TAIL_AT_ANY_TIME
from jepa_lm.study.anytime import (
    anytime_equivalence_test,
    anytime_test,
    e_values,
    seeds_expected,
)
from jepa_lm.study.family import adjust
from jepa_lm.study.paired import equivalence_test, paired_test, skewness, tail_test
from jepa_lm.study.sequential import LEVEL, LOOKS, SEQUENTIAL_TAIL, ends
from jepa_lm.study.statistics import MARGIN, SKEWED, TAIL, effect
from jepa_lm.study.verdict import claim, verdict
from tests.conftest import REPO

pytestmark = pytest.mark.slow
STUDIES = 20_000
SD = 0.003
"""Standard deviation of paired differences."""
GATES = ("placebo", "regularizers_only", "rival")


def arms(rng: np.random.Generator, n: int, *means: float, draw=None) -> np.ndarray:
    """Return scores [studies, arms, n] with these means; paired differences have the deviation SD."""
    draw = draw or (lambda size: rng.normal(size=size))
    noise = draw((STUDIES, len(means), n))
    return np.asarray(means)[:, None] + SD / np.sqrt(2) * noise


def words(scores: np.ndarray, alpha: float = 0.05) -> np.ndarray:
    """Return the word of each study, whose arms are the treatment, the baseline and the gates."""
    found = []
    for i in range(1, scores.shape[1]):
        d = scores[:, 0] - scores[:, i]
        same = np.maximum(equivalence_test(d, MARGIN), TAIL * tail_test(d, MARGIN)) < alpha
        sides = np.where(d.mean(axis=-1) < 0, "better", "worse")
        differ = paired_test(d) < alpha
        sided = np.where(differ, sides, "no difference shown")
        found.append(np.where(same, "equivalent", sided) if i == 1 else sided)
    helps = np.logical_and.reduce([standing == "better" for standing in found])
    word = np.where(found[0] == "better", "no difference shown", found[0])
    return np.where(helps, "helps", np.where(word == "worse", "hurts", word))


def rate(word: str, scores: np.ndarray) -> float:
    return float(np.mean(words(scores) == word))


def at_most(share: float, most: float) -> bool:
    """Whether a share of simulated studies is compatible with a rate of at most this."""
    return share <= stats.binom.ppf(0.9995, STUDIES, most) / STUDIES


@pytest.mark.parametrize("means", [(0, 0, 0, 0, 0), (-0.006, 0, 0, 0, 0), (0.006, 0, 0, 0, 0)])
@pytest.mark.parametrize("n", [3, 8])
def test_the_words_of_many_studies_are_those_of_verdict(means, n):
    scores = 1.7 + arms(np.random.default_rng(n), n, *means)[:60]
    expected = []
    for study in scores:
        runs = [{str(i): float(x) for i, x in enumerate(arm)} for arm in study]
        roles = zip(("none", *GATES), runs[1:], strict=True)
        effects = {role: effect(runs[0], control, resamples=0) for role, control in roles}
        expected.append(verdict(effects).word)
    assert words(scores).tolist() == expected


GAIN = -0.02
NULLS = {
    "nothing has an effect": (0, 0, 0, 0, 0),
    "parameters and compute help, and so does the placebo": (GAIN, 0, GAIN, 0, 0),
    "regularizers alone gain as much": (GAIN, 0, 0, GAIN, 0),
    "the rival gains as much": (GAIN, 0, 0, 0, GAIN),
    "all controls but the baseline gain as much": (GAIN, 0, GAIN, GAIN, GAIN),
    "harm": (0.02, 0, 0, 0, 0),
}


@pytest.mark.parametrize("n", [3, 5, 8, 20])
@pytest.mark.parametrize("means", NULLS.values(), ids=NULLS)
def test_what_does_not_help_is_seldom_said_to(means, n):
    found = rate("helps", arms(np.random.default_rng(n), n, *means))
    assert at_most(found, 0.025)  # one side of a two-sided test


@pytest.mark.parametrize("means", NULLS.values(), ids=NULLS)
def test_four_looks_through_all_gates_say_helps_as_seldom(means):
    scores = arms(np.random.default_rng(20), LOOKS[-1], *means)
    looked = [words(scores[:, :, :n], LEVEL) == "helps" for n in LOOKS]
    assert at_most(float(np.any(looked, axis=0).mean()), 0.025)


def test_ten_points_of_a_sweep_without_effect_seldom_get_a_word():
    """Each alone, they would in 30 % of sweeps: they share their baseline."""
    scores = arms(np.random.default_rng(10), 5, *[0.0] * 11)
    p = paired_test(scores[:, 1:] - scores[:, :1])  # [studies, 10]
    assert (p < 0.05).any(axis=1).mean() > 0.25
    ranked = np.sort(p, axis=1) * np.arange(10, 0, -1)
    found = ranked[:, 0] < 0.05  # Holm's first step: some claim stands
    assert at_most(float(found.mean()), 0.05)
    for study, wrong in zip(1.7 + scores[:60], found[:60], strict=True):
        runs = [{str(i): float(x) for i, x in enumerate(arm)} for arm in study]
        effects = [{"weight_0": effect(run, runs[0], resamples=0)} for run in runs[1:]]
        family = adjust({str(i): claim(of, ()) for i, of in enumerate(effects)})
        said = [verdict(of, adjusted=family[str(i)]).word for i, of in enumerate(effects)]
        assert any(word in ("better, no placebo", "hurts") for word in said) <= wrong


def test_without_its_gate_a_gain_of_the_regularizers_would_be_called_help():
    """Planted fault: the arm is there, and has no say."""
    scores = arms(np.random.default_rng(1), 5, GAIN, 0, 0, GAIN, 0)
    assert rate("helps", np.delete(scores, 3, axis=1)) > 0.98
    assert at_most(rate("helps", scores), 0.025)


def test_symmetric_tails_change_little():
    rng = np.random.default_rng(2)
    scores = arms(rng, 5, 0, 0, 0, 0, 0, draw=lambda size: rng.standard_t(3, size) / np.sqrt(3))
    assert at_most(rate("helps", scores), 0.025)
    assert at_most(rate("hurts", scores), 0.025)


@pytest.mark.parametrize("means", [(0, 0), (0, 0, 0, 0, 0)])
def test_harm_is_seldom_seen_where_there_is_none(means):
    assert at_most(rate("hurts", arms(np.random.default_rng(3), 5, *means)), 0.025)


@pytest.mark.parametrize(("gain", "power"), [(0.006, 0.97), (0.0045, 0.8)])
def test_true_effects_are_found_through_all_gates(gain, power):
    scores = arms(np.random.default_rng(4), 8, -gain, 0, 0, 0, 0)
    assert rate("helps", scores) >= power


def test_more_arms_without_a_say_take_no_power():
    """With Holm's correction over arms, four more of them took it from 0.82 to 0.36 (n = 5, sd .005)."""
    rng = np.random.default_rng(5)
    scores = arms(rng, 5, -0.010 * SD / 0.005, 0, 0)
    alone = rate("helps", scores)
    assert alone > 0.7
    # The diagnostic arms do not enter `verdict` at all; see test_arms_without_a_say_change_no_word.
    uncorrected = [paired_test(scores[:, 0] - scores[:, i]) for i in (1, 2)]
    assert alone == pytest.approx(np.mean(np.max(uncorrected, axis=0) < 0.05), abs=0.02)


@pytest.mark.parametrize("n", [5, 8])
def test_equivalence_at_the_margin_errs_as_seldom_as_it_says(n):
    for edge in (MARGIN, -MARGIN):
        assert at_most(rate("equivalent", arms(np.random.default_rng(n), n, edge, 0)), 0.05)


# Looks before the end: 5,000 studies each

LOOKED = 5_000


def drawn(seed: int, mean: float, n: int = LOOKS[-1]) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, SD, (LOOKED, n))


def within(found: np.ndarray, rate: float) -> bool:
    low, high = stats.binom.interval(0.999, len(found), rate)
    return bool(low <= found.sum() <= high)


def test_adding_seeds_one_at_a_time_finds_what_is_not_there():
    """What the plans below are for: looks at 5, 6, ... 20 seeds, each at the full level."""
    null, edge = drawn(0, 0.0), drawn(1, MARGIN)
    every = range(5, 21)
    assert np.mean([paired_test(null[:, :n]) < 0.05 for n in every], axis=0).shape == (LOOKED,)
    assert np.any([paired_test(null[:, :n]) < 0.05 for n in every], axis=0).mean() > 0.15
    assert (
        np.any([equivalence_test(edge[:, :n], MARGIN) < 0.05 for n in every], axis=0).mean() > 0.15
    )


def test_four_looks_err_as_often_as_one():
    null = drawn(2, 0.0)
    assert within(np.any([paired_test(null[:, :n]) < LEVEL for n in LOOKS], axis=0), 0.05)
    for edge in (MARGIN, -MARGIN):
        d = drawn(3, edge)
        student = [equivalence_test(d[:, :n], MARGIN) < LEVEL for n in LOOKS]
        assert within(np.any(student, axis=0), 0.047)
        tail = [SEQUENTIAL_TAIL * tail_test(d[:, :n], MARGIN) < LEVEL for n in LOOKS]
        assert np.any(np.logical_and(student, tail), axis=0).mean() < 0.02


def test_e_values_err_no_more_often_than_they_say_however_long_one_looks():
    """Ville's bound: less than 5 % over 100 seeds."""
    d = drawn(4, 0.0, 100)
    null = ever_different(d)
    assert 0 < null.mean() <= 0.05
    each = [anytime_test(d[:200, :n]) < 0.05 for n in range(3, 101)]
    assert (np.any(each, axis=0) == null[:200]).all()
    for edge in (MARGIN, -MARGIN):
        assert ever_same(drawn(5, edge, 100)).mean() <= 0.05
    assert np.mean(anytime_test(drawn(6, -0.006)) < 0.05) > 0.99
    assert ever_same(drawn(7, 0.0)).mean() > 0.95


def ever_different(d: np.ndarray) -> np.ndarray:
    """Return in which studies p at any time is below 0.05 at some look: its own e-value counts there."""
    return e_values(d).max(axis=-1) > 20


def ever_same(d: np.ndarray) -> np.ndarray:
    """Return which studies are equivalent at some look."""
    possible = np.minimum(e_values(d, MARGIN), e_values(d, -MARGIN)).max(axis=-1) > 20
    found = np.zeros(len(d), dtype=bool)
    found[possible] = np.any(
        [same_at_any_time(d[possible, :n]) for n in range(3, d.shape[1] + 1)], axis=0
    )
    return found


def same_at_any_time(d: np.ndarray) -> np.ndarray:
    """Return which studies are equivalent at their last look."""
    within = anytime_equivalence_test(d, MARGIN) < 0.05
    return within & (TAIL_AT_ANY_TIME * tail_test(d, MARGIN) < 0.05)


DOCUMENTED = (REPO / "docs" / "studies.md").read_text(encoding="utf-8")


def documented() -> list[tuple[float, bool, float, float | None]]:
    """Return true differences, whether the placebo has the same gain, and the seeds that studies take.

    Sequential and open, as documented; None without a word.
    """
    table = DOCUMENTED.partition("| true difference, BPB |")[2].partition("\n\n")[0]
    rows = [row.strip(" |").split(" | ") for row in table.split("\n")[2:]]
    return [
        (
            float(what.partition(",")[0]),
            "placebo" in what,
            float(sequential),
            None if at_any_time == "no word" else float(at_any_time),
        )
        for what, sequential, at_any_time in rows
    ]


@pytest.mark.parametrize(("mean", "placebo", "sequential", "at_any_time"), documented())
def test_studies_take_as_many_seeds_as_the_documentation_says(
    mean, placebo, sequential, at_any_time
):
    pairs = np.stack([drawn(8, mean), drawn(9, 0.0)][: 1 + placebo], axis=1)
    taken = [seeds_of(study) for study in 1.7 + pairs[: 400 // (1 + placebo)]]
    assert np.mean(taken) == pytest.approx(sequential, abs=0.6)
    if at_any_time is None:
        assert ever_different(drawn(9, 0.0, 100)).mean() < 0.05
        return
    first = seeds_at_any_time(drawn(8, mean, 60)[:2000])
    assert np.mean(first) == pytest.approx(at_any_time, abs=0.2)
    apart = seeds_expected(abs(mean) / SD)
    within = seeds_expected(max(0, MARGIN - abs(mean)) / SD, same=True)
    expected = min(n for n in (apart, within) if n is not None)
    assert np.mean(first) == pytest.approx(expected, rel=0.3)  # what a report says


def seeds_at_any_time(d: np.ndarray) -> np.ndarray:
    """Return after how many seeds each of these studies has a word by e-values."""
    differ = e_values(d).T > 20  # for the first time, so on the side of its own look
    word = differ | np.array([same_at_any_time(d[:, :k]) for k in range(3, d.shape[1] + 1)])
    return np.where(np.any(word, axis=0), 3 + np.argmax(word, axis=0), d.shape[1])


def test_the_rates_of_looks_at_any_time_are_those_of_the_documentation():
    said = re.search(r"([\d.]+) % of 20,000\s+studies.*?([\d.]+) % at the margin", DOCUMENTED, re.S)
    null, edge = ever_different(drawn(4, 0.0, 100)).mean(), ever_same(drawn(5, MARGIN, 100)).mean()
    assert [100 * null, 100 * edge] == pytest.approx(list(map(float, said.groups())), abs=0.6)
    said = re.search(r"by 8 seeds in (\d+) % of studies, by 12 in\s+(\d+) %", DOCUMENTED)
    found = [100 * np.mean(anytime_test(drawn(6, -2 * SD, n)) < 0.05) for n in (8, 12)]
    assert found == pytest.approx(list(map(float, said.groups())), abs=1.5)


def seeds_of(study: np.ndarray) -> int:
    """Return after how many seeds a sequential study ends.

    Args:
        study: 1.7 plus differences from the baseline and, if it is there, the placebo, [1 or 2, n].
    """
    for look in LOOKS[:-1]:
        found = {}
        for role, row in zip(("none", "placebo"), study, strict=False):
            by_seed = {str(i): float(x) for i, x in enumerate(row[:look])}
            found[role] = effect(
                by_seed, dict.fromkeys(by_seed, 1.7), tail=SEQUENTIAL_TAIL, resamples=0
            )
        word = verdict(found, alpha=LEVEL).word
        if ends([(word, found["none"], [e for role, e in found.items() if role == "placebo"])]):
            return look
    return LOOKS[-1]


# Long tails: a treatment whose runs are now and then much worse


def tailed(kind: str, rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Return draws of mean 0 and deviation 1 with a long right tail."""
    if kind == "exponential":
        return rng.exponential(size=size) - 1
    return (rng.lognormal(size=size) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)


def gains_at(how: str, d: np.ndarray) -> np.ndarray:
    """Return at which looks differences [studies, controls, n] are better; [looks, studies, controls]."""
    if how == "open":
        means = (np.cumsum(d, axis=-1) / np.arange(1, d.shape[-1] + 1))[..., 2:]
        sided = np.maximum.accumulate(np.where(means < 0, e_values(d), 0.0), axis=-1)
        return np.moveaxis((means < 0) & (sided > 20), -1, 0)
    looks, level = (LOOKS, LEVEL) if how == "sequential" else (d.shape[-1:], 0.05)
    seen = [d[..., :n] for n in looks]
    return np.array([(paired_test(of) < level) & (of.mean(axis=-1) < 0) for of in seen])


def same_at(how: str, d: np.ndarray) -> np.ndarray:
    """Return which studies with these differences [studies, n] are equivalent at some look."""
    if how == "open":
        return ever_same(d)
    planned = how == "sequential"
    looks, level = (LOOKS, LEVEL) if planned else (d.shape[-1:], 0.05)
    factor = SEQUENTIAL_TAIL if planned else TAIL
    p = [
        np.maximum(equivalence_test(d[:, :n], MARGIN), factor * tail_test(d[:, :n], MARGIN))
        for n in looks
    ]
    return np.any(np.array(p) < level, axis=0)


def documented_tails() -> list[tuple[str, int, list[float]]]:
    """Return how studies are looked at, their seeds, and the rates in percent, as documented."""
    table = DOCUMENTED.partition("| looks |")[2].partition("\n\n")[0]
    rows = [
        [cell.strip(" `") for cell in row.strip("|").split("|")] for row in table.split("\n")[2:]
    ]
    seeds = {"sequential": 20, "open": 100}
    return [
        (how, seeds.get(how) or int(how.split()[0]), [float(rate) for rate in rates])
        for how, *rates in rows
    ]


def against_four(kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Return differences [LOOKED, 4, n] from four arms: of a gain, or without one but with a long tail."""
    scores = SD / np.sqrt(2) * rng.normal(size=(LOOKED, 5, n))
    if kind == "normal":
        scores[:, 0] -= 0.012
    else:
        scores[:, 0] = 0.01 * tailed(kind, rng, (LOOKED, n))
    return scores[:, :1] - scores[:, 1:]


@pytest.mark.parametrize(("how", "n", "rates"), documented_tails())
def test_long_tails_err_as_often_as_the_documentation_says(how, n, rates):
    """Wrong "helps", "better, no placebo" and "equivalent"."""
    found = []
    for kind in ("exponential", "lognormal"):
        rng = np.random.default_rng(n)
        better = gains_at(how, against_four(kind, rng, n))
        same = same_at(how, MARGIN + SD * tailed(kind, rng, (LOOKED, n)))
        found.append([better.all(axis=-1).any(axis=0), better[..., 0].any(axis=0), same])
    measured = 100 * np.mean(found, axis=-1).T.ravel()
    assert measured.tolist() == pytest.approx(rates, abs=0.3)


def documented_hints() -> list[tuple[int, float, float]]:
    """Return seeds, and in what percent of right and of wrong gains a tail is told, as documented."""
    found = re.findall(
        r"(\d+)(?: %[\w\s]+)? and(?: in)? (\d+) %(?: of\s+right ones)? at (\d+)", DOCUMENTED
    )
    return [(int(n), float(right), float(wrong)) for wrong, right, n in found]


@pytest.mark.parametrize(("n", "right", "wrong"), documented_hints())
def test_tails_are_told_as_often_as_the_documentation_says(n, right, wrong):
    """By no means always where they are: a few seeds seldom contain them."""
    told = []
    for kind in ("normal", "exponential"):
        d = against_four(kind, np.random.default_rng(n), n)
        helps = gains_at("fixed", d)[0].all(axis=-1)
        told.append(np.mean((skewness(d[helps]) > SKEWED).any(axis=-1)))
    assert 100 * np.array(told) == pytest.approx([right, wrong], abs=1.0)
