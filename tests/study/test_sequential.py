"""Looks before the end: what they cost, when a study stops, and e-values for whoever looks at any time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from jepa_lm.study import anytime, execution, manifest, sequential
from jepa_lm.study.anytime import G, anytime_equivalence_test, anytime_test, e_values
from jepa_lm.study.paired import tail_test
from jepa_lm.study.registration import register
from jepa_lm.study.results import collect
from jepa_lm.study.statistics import TAIL, Effect, effect
from jepa_lm.study.verdict import verdict
from tests.study.conftest import WITHOUT_OTHERS
from tests.study.pages import AGAINST, report
from tests.study.sweeps import paired, study

STUDY = ("study=ablation", "objective=lse_mtp", "study.seeds=sequential", *WITHOUT_OTHERS)


@pytest.mark.parametrize("mean", [0.0, 0.4])
@pytest.mark.parametrize("n", [3, 6])
def test_e_values_are_a_ratio_of_likelihoods(mean, n):
    """By integration over the standardised mean: densities of the noncentral t over that of t."""
    d = np.random.default_rng(n).normal(0.7, 1.3, n)
    t = (d.mean() - mean) / d.std(ddof=1) * math.sqrt(n)

    def weighed(delta: float) -> float:
        prior = stats.norm.pdf(delta, 0, math.sqrt(G))
        return prior * stats.nct.pdf(t, n - 1, delta * math.sqrt(n))

    mixed = integrate.quad(weighed, -12, 12, points=[0], limit=300)[0]
    assert e_values(d, mean)[-1] == pytest.approx(mixed / stats.t.pdf(t, n - 1), rel=1e-5)
    assert e_values(d, mean).shape == (n - 2,)
    assert e_values(5 * d, 5 * mean) == pytest.approx(e_values(d, mean))


def test_a_p_at_any_time_remembers_its_smallest():
    d = np.array([-1.0, -1.1, -0.9, -1.05, 3.0, 0.5])
    assert anytime_test(d) == anytime_test(d[:4])
    assert anytime_test(d[:4]) == pytest.approx(1 / e_values(d[:4]).max())
    near = np.array([0.001, -0.001, 0.0005, -0.0005, 0.0])
    beside = near + 0.03  # close to one end
    sides = [anytime_equivalence_test(x, 0.05) for x in (beside, -beside)]
    assert sides[0] == sides[1] == 1 / min(e_values(beside, 0.05)[-1], e_values(beside, -0.05)[-1])
    assert anytime_equivalence_test(near, 0.05) < 0.05
    assert anytime_equivalence_test(near + 0.06, 0.05) == 1.0  # far from both ends, and outside


def test_what_spoke_for_a_harm_is_no_evidence_of_a_gain():
    """Six seeds of harm, then three of a larger gain; and nine equal ones before three gains."""
    harm = 0.004 + 0.0005 * np.cos(2 * np.arange(6))
    d = np.append(harm, [-0.03, -0.025, -0.04])
    assert e_values(d).max() == e_values(harm).max() > 20
    assert d.mean() < 0
    by_seed = {str(i): 1.7 + x for i, x in enumerate(d)}
    found = effect(by_seed, dict.fromkeys(by_seed, 1.7), anytime=True, resamples=0)
    sided = e_values(d)[4:].max()  # from the seventh seed on the mean was a gain
    assert found.p == pytest.approx(min(1.0, 1 / sided))
    assert anytime_test(-d) == found.p
    assert anytime_test(harm) < 0.05  # as long as it was one
    assert verdict({"none": found, "placebo": found}).word == "no difference shown"
    equal = 0.0005 * np.cos(2 * np.arange(9))
    d = np.append(equal, [-0.03, -0.02, -0.025])
    assert anytime_equivalence_test(equal, 0.0026) < 0.05
    assert abs(d.mean()) > 0.0026
    assert anytime_equivalence_test(d, 0.0026) == 1.0
    by_seed = {str(i): 1.7 + x for i, x in enumerate(d)}
    found = effect(by_seed, dict.fromkeys(by_seed, 1.7), margin=0.0026, anytime=True, resamples=0)
    assert verdict({"none": found}).word == "no difference shown"


def test_several_looks_allow_for_long_tails_more_strictly(tmp_path):
    """Seven seeds within the margin, of which the last is far from the rest, or is not."""
    control = {str(i): 1.7 + 0.01 * i for i in range(1, 8)}
    words, p = {}, {}
    for last in (0.0032, 0.0):
        d = [*(0.0004 * np.cos(2 * np.arange(1, 7))), last]
        treatment = {s: x + apart for (s, x), apart in zip(control.items(), d, strict=True)}
        scores = {"control": control, "treatment": treatment}
        for seeds in ("fixed", "sequential", "open"):
            folder = tmp_path / f"{last}" / seeds
            study(folder, scores, against=AGAINST, seeds=seeds, margin=0.005)
            (found,) = collect(folder).treatments
            words[last, seeds], p[last, seeds] = found.word, found.main.effect
    assert {words[0.0, seeds] for seeds in ("fixed", "sequential", "open")} == {"equivalent"}
    assert [words[0.0032, seeds] for seeds in ("fixed", "sequential", "open")] == [
        "equivalent",
        "no difference shown",
        "no difference shown",
    ]
    looked, opened = p[0.0032, "sequential"], p[0.0032, "open"]
    assert max(looked.p_equivalent, TAIL * looked.p_tail) < sequential.LEVEL
    assert looked.p_same == sequential.SEQUENTIAL_TAIL * looked.p_tail
    assert opened.p_anytime_same < 0.05 < opened.p_same == anytime.TAIL * opened.p_tail


def test_an_open_study_is_judged_by_e_values(tmp_path):
    scores = paired(1.7, -0.004, 5, noise=0.004)
    fixed = study(tmp_path / "fixed", scores, against=AGAINST)
    opened = study(tmp_path / "open", scores, against=AGAINST, seeds="open")
    one, other = (collect(folder).treatments[0].main.effect for folder in (fixed, opened))
    assert one.p_paired == other.p_paired == one.p
    d = np.array(one.differences)
    assert other.p == anytime_test(d)
    tail = anytime.TAIL * tail_test(d, other.margin)
    assert other.p_same == max(anytime_equivalence_test(d, other.margin), min(1.0, tail))
    assert other.p > one.p


@pytest.mark.parametrize(
    ("mean", "std", "margin", "futile"),
    [
        (0.0005, 0.0001, 0.005, False),  # equivalent soon
        (0.02, 0.01, 0.005, False),  # different soon
        (0.001, 0.02, 0.005, True),  # neither by the twentieth seed
    ],
)
def test_a_study_gives_up_where_no_word_is_near(mean, std, margin, futile):
    noise = stats.zscore(np.cos(2 * np.arange(5)), ddof=1)
    by_seed = {str(i): 1.7 + mean + std * x for i, x in enumerate(noise)}
    found = effect(by_seed, dict.fromkeys(by_seed, 1.7), margin=margin, resamples=0)
    assert sequential.futile(found) == futile
    rng = np.random.default_rng(0)
    means = mean + std / math.sqrt(20) * rng.normal(size=20_000)
    spread = std * np.sqrt(rng.chisquare(19, 20_000) / 19)
    far = stats.t.isf(sequential.LEVEL, 19) * spread / math.sqrt(20)
    differ = np.abs(means) > stats.t.isf(sequential.LEVEL / 2, 19) * spread / math.sqrt(20)
    same = (means + far < margin) & (means - far > -margin)
    assert (max(differ.mean(), same.mean()) < sequential.FUTILE) == futile


def test_a_study_ends_when_every_treatment_has_a_word_or_can_get_none():
    noise = stats.zscore(np.cos(2 * np.arange(5)), ddof=1)
    soon, never = (
        effect(
            {str(i): 1.7 + mean + std * x for i, x in enumerate(noise)}, dict.fromkeys("01234", 1.7)
        )
        for mean, std in ((0.002, 0.002), (0.001, 0.02))
    )
    undecided = "no difference shown"
    assert not sequential.ends([(undecided, soon, ())])
    assert sequential.ends([(undecided, never, ())])
    assert sequential.ends([("hurts", soon, ()), ("equivalent", soon, ())])
    assert not sequential.ends([("hurts", soon, ()), (undecided, soon, ())])


def test_a_gain_is_as_likely_as_against_its_least_likely_gate():
    noise = 0.002 * stats.zscore(np.cos(2 * np.arange(5)), ddof=1)

    def of(mean: float, spread: float = 1.0) -> Effect:
        by_seed = {str(i): 1.7 + mean + spread * x for i, x in enumerate(noise)}
        return effect(by_seed, dict.fromkeys(by_seed, 1.7), margin=0.001, resamples=0)

    gain, none, harm, same, no_runs = of(-0.01), of(-0.0001), of(0.002), of(0.0, 0.0), Effect()
    assert not sequential.futile(gain, [gain])
    for gate in (none, harm, same):
        assert sequential.futile(gain, [gain, gate])
    assert not sequential.futile(gain, [no_runs])
    assert not sequential.futile(of(0.01), [none])  # a harm asks for the baseline alone
    assert not sequential.futile(replace(gain, margin=0.02), [none])  # and so does equivalence


def test_a_look_is_the_plan_of_the_first_seeds(tmp_path):
    plan = manifest.load(study(tmp_path, paired(1.7, 0.0, 8), against=AGAINST))
    first = replace(plan, planned=tuple("12345678")).first(5)
    assert [list(group.runs) for group in first.groups] == [list("12345")] * 2
    assert {job.folder for job in first.jobs} == {r for g in first.groups for r in g.runs.values()}
    assert len(first.jobs) == 10
    assert first.comparisons == plan.comparisons


def test_a_look_has_a_level_of_its_own(tmp_path):
    scores = paired(1.7, -0.02)
    found = collect(study(tmp_path, scores, against=AGAINST, seeds="sequential")).treatments[0]
    scores = paired(1.7, -0.0042, noise=0.003)
    words = {
        kind: collect(study(tmp_path / kind, scores, against=AGAINST, seeds=kind)).treatments[0]
        for kind in ("fixed", "sequential")
    }
    assert 0.0164 < words["fixed"].main.effect.p < 0.05
    assert words["fixed"].word == "better, no placebo"
    assert words["sequential"].word == "no difference shown"
    close = {"none": replace(found.main.effect, p_paired=0.03)}
    assert verdict(close).word == "better, no placebo"
    assert verdict(close, alpha=sequential.LEVEL).word == "no difference shown"
    assert sequential.level_of("sequential") == sequential.LEVEL
    assert sequential.level_of("open") == sequential.level_of("fixed") == 0.05


@pytest.mark.slow
def test_it_stops_at_the_first_look_with_a_word(plan, monkeypatch, capsys):
    looked = []

    def at_its_end(manifest, folder, look):
        looked.append(look)
        return look == 8

    monkeypatch.setattr(execution, "at_its_end", at_its_end)
    done = plan(*STUDY, "seed=range(1,21)")
    assert done.code == 0, done.error
    assert looked == [5, 8]
    assert {len(g.runs) for g in done.plan.groups if not g.name.endswith("weight_0")} == {8}
    assert done.plan.registration.content["seeds"].endswith("19, 20")
    assert "after 5, 8, 12 and 20 seeds, each at 0.0164" in done.plan.registration.content["looks"]
    assert len(done.launched) == 2 * 8 + 1 + (
        2 * 5 + 1
    )  # nothing has run, so all are launched again
    monkeypatch.setattr(execution, "at_its_end", lambda *_: False)
    whole = plan(*STUDY, "seed=range(1,21)")
    assert max(len(g.runs) for g in whole.plan.groups) == 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("seed=range(1,6)",), "it needs 20, such as 'seed=range(1,21)'; 5 given"),
        (("seed=range(1,21)", "study.seeds=sometimes"), "study.seeds"),
        (
            ("study.metric=val/solved", "study.seeds=open"),
            "study.metric=val/solved counts them, so use study.seeds=fixed",
        ),
    ],
)
def test_mistakes(words, said, plan):
    done = plan(*STUDY, *words)
    assert done.code == 2
    assert said in done.error


@pytest.mark.parametrize(("apart", "over"), [(-0.02, True), (-0.001, False)])
def test_the_words_of_a_look_are_told(apart, over, tmp_path, capsys):
    study(tmp_path, paired(1.7, apart, 5, noise=0.003), against=AGAINST, seeds="sequential")
    plan = manifest.load(tmp_path)
    assert execution.at_its_end(plan, tmp_path, 5) == over
    told = capsys.readouterr().err
    assert told.startswith("after 5 seeds: ")
    assert told.endswith("the study ends here\n" if over else "it goes on\n")
    (tmp_path / "0" / "summary.json").unlink()  # killed
    assert execution.at_its_end(plan, tmp_path, 5)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("gate", "over"), [("placebo", True), ("prediction_only", False)])
def test_a_study_ends_where_a_gate_leaves_no_hope_of_a_gain(gate, over, tmp_path, capsys):
    """A gain on the baseline that is not shown yet, and the control has the same."""
    scores = paired(1.7, -0.006, 5, noise=0.005)
    scores["beside"] = {
        seed: score + 1e-4 * (-1) ** int(seed) for seed, score in scores["treatment"].items()
    }
    against = {"treatment": {"weight_0": "control", gate: "beside"}}
    study(tmp_path, scores, against=against, seeds="sequential", margin=0.001)
    assert execution.at_its_end(manifest.load(tmp_path), tmp_path, 5) == over
    assert "no difference shown" in capsys.readouterr().err


def test_a_broken_comparison_ends_a_sequential_study(tmp_path):
    same = {"identities": ((("0", "1"), "weight 0 is objective=none"),)}
    scores = paired(1.7, -0.001, 5, noise=0.003)
    study(tmp_path, scores, against=AGAINST, seeds="sequential", **same)
    assert execution.at_its_end(manifest.load(tmp_path), tmp_path, 5)


def test_a_verdict_at_a_look_is_the_registered_one(tmp_path):
    for n, exploratory in ((5, False), (6, True), (8, False)):
        folder = study(
            tmp_path / str(n), paired(1.7, -0.02, n), against=AGAINST, seeds="sequential"
        )
        plan = replace(manifest.load(folder), planned=tuple(str(i) for i in range(1, 21)))
        replace(plan, registration=register(plan)).save(folder)
        assert ("Exploratory" in report(folder).headline) == exploratory
