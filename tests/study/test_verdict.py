"""Verdicts: the table of cases, and how often simulated studies without effect get a wrong one."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from jepa_lm.study.family import Adjusted
from jepa_lm.study.power import smallest_effect
from jepa_lm.study.sequential import LEVEL
from jepa_lm.study.statistics import Effect, effect
from jepa_lm.study.verdict import claim, standing, verdict
from tests.conftest import REPO

STUDIES = 2000
NOISE = np.array([-0.0010, 0.0004, 0.0008, -0.0006, 0.0004])


def of(mean: float, *, scale: float = 1.0, n: int = 5, nats: float | None = None) -> Effect:
    """Return an effect of about this mean; `nats` adds a mean difference in nats per token."""
    seeds = [str(i) for i in range(n)]
    control = {s: 1.7 + 0.01 * i for i, s in enumerate(seeds)}
    noise = dict(zip(seeds, scale * NOISE[:n], strict=True))
    options = {}
    if nats is not None:
        options = dict(
            nll_treatment={s: nats + noise[s] for s in seeds}, nll_control=dict.fromkeys(seeds, 0.0)
        )
    return effect({s: control[s] + mean + noise[s] for s in seeds}, control, **options)


GAIN, LOSS = of(-0.02), of(0.02)
TIE, VAGUE = of(0.0002), of(-0.004, scale=20)
SAME, FEW = of(0.0, scale=0.0), of(-0.02, n=2)
TINY = of(-0.002)


@pytest.mark.parametrize(
    ("weight_0", "placebo", "word", "says"),
    [
        (GAIN, GAIN, "helps", "Better than the placebo too"),
        (GAIN, None, "better, no placebo", "No placebo was run"),
        (GAIN, VAGUE, "no difference shown", "no difference from the placebo is shown"),
        (GAIN, LOSS, "no difference shown", "worse than the placebo"),
        (GAIN, TIE, "no difference shown", "within 0.005 BPB of the placebo"),
        (GAIN, TINY, "helps", "Better than the placebo too: -0.0020 BPB"),  # by however little
        (GAIN, SAME, "no difference shown", "not shown to come from the predicted latents"),
        (GAIN, FEW, "too few seeds", "Too few seeds to compare with the placebo"),
        (GAIN, Effect(), "too few seeds", "n = 0"),
        (LOSS, GAIN, "hurts", "Worse than weight 0: +0.0200 BPB"),
        (LOSS, None, "hurts", "Worse than weight 0"),
        (TIE, GAIN, "equivalent", "Within 0.005 BPB of weight 0"),
        (TINY, None, "equivalent", "real, but smaller than the margin that counts as equal"),
        (SAME, None, "equivalent", "The scores equal those of"),
        (SAME, SAME, "equivalent", "The scores equal those of"),
        (VAGUE, GAIN, "no difference shown", "No difference from weight 0 is shown"),
        (VAGUE, None, "no difference shown", "8 studies of 10"),
        (FEW, GAIN, "too few seeds", "at least 3 pairs"),
        (of(0.0, scale=0.0, n=2), None, "too few seeds", "n = 2"),
        (Effect(), None, "too few seeds", "n = 0"),
        (of(0.01, scale=0.0), None, "too few seeds", "seeds change nothing"),
    ],
)
def test_the_table_of_verdicts(weight_0, placebo, word, says):
    effects = {"weight_0": weight_0} | ({} if placebo is None else {"placebo": placebo})
    found = verdict(effects)
    assert found.word == word
    assert says in found.sentence
    assert not any(text in found.sentence for text in ("None", "nan", ".."))


@pytest.mark.parametrize("tie", [TIE, TINY, SAME])
def test_runs_that_cannot_have_parted_are_not_called_equivalent(tie):
    found = verdict({"weight_0": tie, "placebo": TIE}, too_little="They have hardly trained.")
    assert found.word == "no difference shown"
    within = "Better than weight 0, within the margin: -0.0020 BPB"
    starts = within if tie is TINY else "No difference from weight 0 is shown: "
    assert found.sentence.startswith(starts)
    assert found.sentence.endswith(" They have hardly trained.")
    for apart, word in (
        (GAIN, "better, no placebo"),
        (LOSS, "hurts"),
        (VAGUE, "no difference shown"),
    ):
        assert verdict({"weight_0": apart}, too_little="They have hardly trained.").word == word


def shares(solved: int, n: int = 5) -> dict[str, float]:
    """Return the shares of n seeds of which some have solved their task."""
    return {str(i): 1.0 - i / 1000 if i < solved else 0.2 + i / 100 for i in range(n)}


@pytest.mark.parametrize(
    ("solved", "control", "placebo", "word", "says"),
    [
        (4, 0, None, "better, no placebo", "solved by 4 of 5 seeds against 0 of 5, p = 0.024"),
        (5, 0, 0, "helps", "Better than the placebo too: solved by 5 of 5 seeds against 0 of 5"),
        (5, 0, 4, "no difference shown", "no difference from the placebo is shown"),
        (3, 0, None, "no difference shown", "With this many seeds, 4 of 5 would have shown a gain"),
        (0, 0, None, "no difference shown", "solved by 0 of 5 seeds against 0 of 5, p = 1"),
        (5, 5, None, "no difference shown", "no count would have shown a gain"),
        (0, 4, None, "hurts", "Worse than weight 0: solved by 0 of 5 seeds against 4 of 5"),
    ],
)
def test_a_share_that_is_all_or_nothing_is_judged_by_solved_seeds(
    solved, control, placebo, word, says
):
    options = {"larger": True, "bimodal": True, "unit": "solved share"}
    effects = {"weight_0": effect(shares(solved), shares(control), **options)}
    if placebo is not None:
        effects["placebo"] = effect(shares(solved), shares(placebo), **options)
    found = verdict(effects)
    assert found.word == word
    assert says in found.sentence
    assert "equivalen" not in found.sentence
    few = effect(shares(2, 2), shares(0, 2), **options)
    assert verdict({"weight_0": few}).word == "too few seeds"


def test_larger_is_better_where_it_is():
    up, down = ({s: 0.5 + d + x for s, x in zip("abcde", NOISE, strict=True)} for d in (0.1, -0.1))
    flat = dict.fromkeys("abcde", 0.5)
    assert verdict({"weight_0": effect(up, flat, larger=True)}).word == "better, no placebo"
    assert verdict({"weight_0": effect(down, flat, larger=True)}).word == "hurts"
    assert verdict({"weight_0": effect(up, flat)}).word == "hurts"


def test_a_sentence_in_full():
    found = verdict({"weight_0": of(-0.02, nats=-0.03), "placebo": of(-0.01)}).sentence
    assert found == (
        "Better than weight 0: -0.0200 BPB, 95 % interval -0.0209 to -0.0191, n = 5, p < 0.0001. "
        "Better than the placebo too: -0.0100 BPB, 95 % interval -0.0109 to -0.0091, n = 5, "
        "p < 0.0001. The challenge's rule (0.005 nats per token better at p < 0.01) is met: "
        "-0.0300 nats, p < 0.0001."
    )


def test_a_tail_on_the_other_side_than_the_mean_is_told():
    """One run in five that is nearly as bad as the control's: there may be worse ones."""
    tail = np.array([-0.002, -0.0025, -0.0015, -0.002, 0.008])
    control = dict.fromkeys("01234", 1.7)

    def skewed(mean: float, side: int) -> Effect:
        scores = {s: 1.7 + mean + side * x for s, x in zip("01234", tail, strict=True)}
        return effect(scores, control, resamples=0)

    gain = skewed(-0.03, 1)
    assert gain.tail == pytest.approx(stats.skew(tail))
    found = verdict({"none": GAIN, "placebo": gain})
    assert found.word == "helps"
    assert found.sentence.endswith(
        f"Skewness toward a harm is large in the differences from the placebo ({gain.tail:.1f}): if the tail "
        "is longer than these seeds show, this word is wrong more often than p says."
    )
    harm = verdict({"none": skewed(0.03, -1)})
    assert harm.word == "hurts"
    assert "Skewness toward a gain is large in the differences from cross entropy" in harm.sentence
    larger = replace(skewed(0.03, -1), larger=True)
    assert "toward a harm" in verdict({"none": larger}).sentence
    for harmless in (skewed(-0.03, -1), skewed(0.03, 1), of(-0.02, scale=8), SAME, FEW):
        assert "Skewness" not in verdict({"none": harmless}).sentence


def test_a_gain_that_meets_the_challenges_rule_is_not_called_equivalent():
    """0.003 BPB is within the margin, but 0.0075 nats where a token has 3.6 bytes."""
    gain = of(-0.003, nats=-0.0075)
    assert gain.p_equivalent < 0.05
    assert gain.p_rule < 0.01
    assert verdict({"weight_0": gain, "placebo": gain}).word == "helps"
    assert verdict({"weight_0": of(-0.003, nats=-0.004), "placebo": gain}).word == "equivalent"


def test_the_baseline_is_weight_0_or_no_jepa_or_any_other_control():
    assert verdict({"none": LOSS}).sentence.startswith("Worse than cross entropy alone")
    assert verdict({"control": LOSS}).sentence.startswith("Worse than its control")
    assert verdict({"none": LOSS, "weight_0": GAIN, "placebo": GAIN}).word == "helps"
    with pytest.raises(ValueError, match="weight_0"):
        verdict({"placebo": GAIN})


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (GAIN, "Beats its rival in token space at equal FLOPs: -0.0200 BPB"),
        (LOSS, "Does not beat its rival in token space at equal FLOPs (it is worse): +0.0200"),
        (TIE, "Does not beat its rival in token space at equal FLOPs (within 0.005 BPB): +0.0002"),
        (VAGUE, "Does not beat its rival in token space at equal FLOPs (no difference is shown)"),
        (FEW, "Does not beat its rival in token space at equal FLOPs (too few seeds to say)"),
    ],
)
def test_a_rival_is_told_and_changes_no_word(effect, said):
    found = verdict({"none": GAIN, "placebo": GAIN, "rival_equal_flops": effect})
    assert found.word == "helps"
    assert said in found.sentence


CLOSE = replace(of(-0.01, scale=8), p_paired=0.03)
"""A gain that is significant alone, but not among four."""


def test_arms_without_a_say_change_no_word():
    others = {"prediction_only": VAGUE, "loss_only": LOSS, "as_published": TIE}
    assert standing(CLOSE) == "better"
    alone = verdict({"weight_0": CLOSE, "placebo": CLOSE})
    assert alone.word == "helps"
    assert verdict({"weight_0": CLOSE, "placebo": CLOSE, **others}) == alone


def first_study() -> dict[str, dict[str, float]]:
    """Return the scores of the first study, by arm and seed, as docs/log.md has them."""
    text = (REPO / "docs" / "log.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (none|lewm/\w+) \| [^|]+ \| [^|]+ \|((?: 1\.\d{4} \|){5})$", text, re.M)
    return {
        arm: dict(zip("12345", map(float, seeds.split("|")[:5]), strict=True))
        for arm, seeds in rows
    }


def test_the_word_on_lewm_is_the_same_in_all_subsets_of_its_arms():
    """With Holm's correction over arms it was "hurts" in six of eight."""
    scores = first_study()
    effects = {
        role: effect(scores["lewm/treatment"], scores[arm], resamples=0)
        for role, arm in {"none": "none", **{r: f"lewm/{r}" for r in LEWM}}.items()
    }
    for size in range(4):
        for roles in combinations(LEWM, size):
            found = verdict({"none": effects["none"], **{r: effects[r] for r in roles}})
            assert found.word == "hurts"


LEWM = ("placebo", "prediction_only", "regularizers_only")


def test_what_could_be_shown_is_that_of_the_level_of_a_look():
    alone, at_a_look = (
        float(
            re.search(r"of (0[.]\d+) BPB; to find", verdict({"none": VAGUE}, alpha=a).sentence)[1]
        )
        for a in (0.05, 0.0164)
    )
    assert alone < at_a_look == pytest.approx(smallest_effect(VAGUE.std, 5, 0.0164), abs=1e-4)


def test_a_gate_is_passed_at_the_level_of_the_look():
    gate = of(-0.003, scale=2.5)
    assert LEVEL < gate.p < 0.05
    effects = {"none": GAIN, "placebo": gate}
    assert verdict(effects).word == "helps"
    found = verdict(effects, alpha=LEVEL)
    assert found.word == "no difference shown"
    assert "no difference from the placebo is shown" in found.sentence


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("regularizers_only", "But no difference from its regularizers alone is shown"),
        ("rival", "But no difference from its rival in token space is shown"),
        ("placebo", "But no difference from the placebo is shown"),
    ],
)
def test_a_gain_must_hold_against_every_gate(gate, says):
    effects = dict.fromkeys(("weight_0", "placebo", "regularizers_only", "rival"), GAIN)
    assert verdict(effects).word == "helps"
    found = verdict({**effects, gate: VAGUE})
    assert found.word == "no difference shown"
    assert says in found.sentence
    assert verdict({**effects, gate: LOSS}).word == "no difference shown"
    assert verdict({**effects, gate: FEW}).word == "too few seeds"
    assert verdict({**effects, gate: VAGUE, "weight_0": LOSS}).word == "hurts"
    asked = [role for role in effects if role not in ("weight_0", gate)]
    word = "better, no placebo" if gate == "placebo" else "helps"
    assert verdict({**effects, gate: VAGUE}, asked).word == word


def test_an_arm_becomes_a_gate_on_request():
    effects = {"none": GAIN, "placebo": GAIN, "none_equal_flops": TIE}
    assert verdict(effects).word == "helps"
    found = verdict(effects, ("placebo", "none_equal_flops"))
    assert found.word == "no difference shown"
    assert "within 0.005 BPB of cross entropy alone at equal FLOPs" in found.sentence


@pytest.mark.parametrize(("word", "sign"), [("helps", -1), ("hurts", 1)])
def test_a_difference_must_stand_out_among_the_treatments(word, sign):
    close = replace(of(sign * 0.01, scale=8), p_paired=0.03)
    effects = {"weight_0": close, "placebo": close}
    assert claim(effects, ["placebo"]).difference == 0.03
    assert verdict(effects).word == word
    found = verdict(effects, adjusted=Adjusted(0.06, 1.0, 2))
    assert found.word == "no difference shown"
    assert "one of 2 treatments may look so by chance: p = 0.06 after Holm" in found.sentence
    tie = verdict({"weight_0": TIE}, adjusted=Adjusted(1.0, 0.06, 2))
    assert tie.word == "no difference shown"


@pytest.mark.parametrize(("word", "sign"), [("better, no placebo", -1), ("hurts", 1)])
def test_a_difference_within_the_margin_counts_where_equivalence_does_not_stand_out(word, sign):
    """Beside another treatment the equivalence may be chance; the difference is not."""
    small = of(sign * 0.002)
    assert verdict({"none": small}).word == "equivalent"
    found = verdict({"none": small}, adjusted=Adjusted(0.01, 0.06, 2))
    assert found.word == word
    both = verdict({"none": small}, adjusted=Adjusted(0.06, 0.06, 2))
    assert both.word == "no difference shown"
    assert "may look so by chance" in both.sentence


def test_a_claim_is_the_weakest_of_its_tests():
    effects = {"none": replace(GAIN, p_paired=0.001), "placebo": replace(GAIN, p_paired=0.02)}
    assert claim(effects, ["placebo"]).difference == 0.02
    assert claim(effects, []).difference == 0.001
    assert claim({**effects, "placebo": LOSS}, ["placebo"]).difference == 1.0
    assert claim({"none": replace(LOSS, p_paired=0.001), "placebo": GAIN}, ["placebo"])[0] == 0.001
    for nothing in (SAME, FEW, Effect()):
        assert claim({"none": nothing}, []).difference is None


def test_a_harm_that_meets_the_challenges_rule_is_not_called_equivalent():
    harm = of(0.003, nats=0.0075)
    found = verdict({"weight_0": harm})
    assert found.word == "hurts"
    assert "(0.005 nats per token worse at p < 0.01) is met" in found.sentence
    assert verdict({"weight_0": of(0.003, nats=0.004)}).word == "equivalent"


def test_what_could_be_shown_counts_the_gates_and_the_treatments():
    spread = {"weight_0": VAGUE, "placebo": of(-0.004, scale=40), "rival": of(-0.004, scale=10)}
    alone, gated, among = (
        float(re.search(r"of (0[.]\d+) BPB; to find", found.sentence)[1])
        for found in (
            verdict({"weight_0": VAGUE}),
            verdict(spread),
            verdict(spread, adjusted=Adjusted(1.0, 1.0, 4)),
        )
    )
    assert alone == pytest.approx(smallest_effect(VAGUE.std, 5, 0.05), abs=1e-4)
    assert gated == pytest.approx(smallest_effect(2 * VAGUE.std, 5, 0.05, 3), abs=2e-4)
    assert among == pytest.approx(smallest_effect(2 * VAGUE.std, 5, 0.05 / 4, 3), abs=2e-4)
    assert "a gain on all 3 controls with a say" in verdict(spread).sentence
    two = {name: effect for name, effect in spread.items() if name != "rival"}
    assert "a gain on both controls with a say" in verdict(two).sentence
    found = verdict({**spread, "rival": FEW})
    assert "a gain on 2 (the others cannot be tested) of 3 controls" in found.sentence


def seeds_in(sentence: str) -> int:
    return int(re.search(r"seen here would take (\d+) seeds", sentence)[1])


def test_the_seeds_needed_are_those_of_the_whole_word():
    """All gates, each at the level after correction; a harm needs the baseline alone."""
    near, far = of(-0.004, scale=10), of(-0.004, scale=40)
    alone = seeds_in(verdict({"none": near}).sentence)
    assert alone == near.seeds_needed
    gated = verdict({"none": near, "placebo": far})
    assert "to find those seen here" in gated.sentence
    assert seeds_in(gated.sentence) > seeds_in(verdict({"none": far}).sentence) > alone
    among = verdict({"none": near}, adjusted=Adjusted(1.0, 1.0, 4))
    assert seeds_in(among.sentence) > alone
    other_side = verdict({"none": near, "placebo": of(0.004, scale=40)})
    assert "seen here" not in other_side.sentence
    harm = verdict({"none": of(0.004, scale=10), "placebo": far})
    assert "to find the one seen here" in harm.sentence


@pytest.mark.parametrize(
    "effects",
    [
        {"none": GAIN, "placebo": VAGUE},
        {"none": replace(of(-0.01, scale=8), p_paired=0.03)},
    ],
)
def test_what_could_be_shown_is_said_wherever_nothing_is(effects):
    found = verdict(effects, adjusted=Adjusted(0.06, 1.0, 2))
    assert found.word == "no difference shown"
    assert "8 studies of 10 would find a" in found.sentence


@pytest.mark.parametrize(
    ("mean", "says"), [(-0.004, "a word is after"), (-0.0043, "within 100 seeds no word is")]
)
def test_looks_at_any_time_say_when_a_word_is_to_be_expected(mean, says):
    """By e-values: the power of Student's test is not theirs."""
    rng = np.random.default_rng(1)
    spread = 0.006 if mean == -0.004 else 0.03
    pairs = {str(i): float(1.7 + mean + spread * x) for i, x in enumerate(rng.normal(size=4))}
    found = verdict({"none": effect(pairs, dict.fromkeys(pairs, 1.7), anytime=True, resamples=0)})
    assert found.word == "no difference shown"
    assert f"If differences stay as they are, {says}" in found.sentence
    assert "8 studies of 10" not in found.sentence


def scores(
    rng: np.random.Generator, *means: float, spread: float, runs: int = 5
) -> list[dict[str, float]]:
    """Return groups of runs with shared seed effects and noise of their own."""
    luck = 1.7 + 0.02 * rng.normal(size=runs)
    return [
        {str(i): float(x) for i, x in enumerate(luck + mean + spread * rng.normal(size=runs))}
        for mean in means
    ]


def words(
    seed: int, studies: int, treatment: float, placebo: float, spread: float, runs: int = 5
) -> np.ndarray:
    """Return the verdicts of simulated studies with these true effects against weight 0."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(studies):
        jepa, zero, permuted = scores(rng, treatment, 0.0, placebo, spread=spread, runs=runs)
        against = {
            "weight_0": effect(jepa, zero, resamples=0),
            "placebo": effect(jepa, permuted, resamples=0),
        }
        found.append(verdict(against).word)
    return np.array(found)


def most(rate: float) -> float:
    return float(stats.binom.ppf(0.9995, STUDIES, rate))


@pytest.mark.slow
def test_studies_without_effect_are_rarely_called_anything():
    found = words(0, STUDIES, 0.0, 0.0, spread=0.01)
    assert np.isin(found, ["helps", "hurts"]).sum() <= most(0.05)
    assert (found == "helps").sum() <= most(0.025)
    assert (found == "hurts").sum() <= most(0.025)


@pytest.mark.slow
def test_a_gain_that_the_placebo_has_too_is_rarely_called_help():
    """Parameters and compute help here, the latents do not; weight 0 alone would be misleading."""
    found = words(1, STUDIES, -0.05, -0.05, spread=0.01)
    assert (found == "helps").sum() <= most(0.025)


@pytest.mark.slow
def test_true_effects_get_their_words():
    assert np.mean(words(2, 100, -0.05, 0.0, spread=0.005) == "helps") > 0.95
    assert np.mean(words(3, 100, 0.05, 0.0, spread=0.005) == "hurts") > 0.95
    # With five seeds too few: differences with a long tail would be called equal too often.
    assert np.mean(words(4, 100, 0.0, 0.0, spread=0.001, runs=12) == "equivalent") > 0.95
