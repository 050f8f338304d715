"""Runs that are out of a comparison: those that diverged.

A run is out if it has no score, for other reasons than the machine's, or if its score is worse than its arm's
median by more than 6 median absolute deviations of the residuals and by more than 10 margins. Residuals are
scores minus their arm's median, pooled over the arms that have a say, so that an arm of few seeds does not
set its own standard. Without the rule, one finite blow-up among ten seeds takes all power from a paired test;
and if runs without a score were simply missing, an objective that kills six runs of ten could be called a
gain on the other four.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from jepa_lm.study.arm_result import ArmResult

DEVIATIONS = 6
"""Median absolute deviations of the residuals..."""
MARGINS = 10
"""...and margins by which a score is worse than its arm's median, to be out."""

Out = Mapping[str, str]
"""Why runs of an arm are out, by seed."""


def excluded(arms: Iterable[ArmResult], having_a_say: Iterable[ArmResult]) -> dict[str, Out]:
    """Return the runs of each arm that are out, by the arm's name."""
    known = list(having_a_say)
    bimodal = any(arm.measure.quantity.bimodal for arm in known)
    residuals = [abs(value) for arm in known for value in _residuals(arm).values()]
    least = DEVIATIONS * float(np.median(residuals)) if residuals else 0.0
    return {arm.name: {**arm.failed, **({} if bimodal else _outlying(arm, least))} for arm in arms}


def _outlying(arm: ArmResult, least: float) -> Out:
    limit = max(least, MARGINS * arm.measure.margin)
    return {
        seed: f"{arm.scores[seed]:.4f} {arm.measure.unit}, far from the arm's median"
        for seed, value in _residuals(arm).items()
        if value > limit
    }


def _residuals(arm: ArmResult) -> dict[str, float]:
    """Return by how much each score is worse than the arm's median."""
    if not arm.scores:
        return {}
    worse = arm.measure.quantity.worse
    middle = worse(float(np.median(list(arm.scores.values()))))
    return {seed: worse(score) - middle for seed, score in arm.scores.items()}


def told(treatment: Out, baseline: Out, name: str) -> str:
    """Return the runs that are out of a comparison, as a sentence.

    Args:
        name: of the baseline.
    """
    ours, theirs = _told(treatment), _told(baseline)
    return f"Of the treatment's runs, {ours}; of the runs of {name}, {theirs}. The others say:"


def left_out(out: Mapping[str, Out]) -> str:
    """Return the runs of several arms that are out, by the arm's name, as a sentence; empty if none is."""
    told = "; ".join(f"of {name}, {_told(runs)}" for name, runs in out.items() if runs)
    return f"Left out of the tests, with their partners: {told}." if told else ""


def _told(out: Out) -> str:
    if not out:
        return "none diverged or failed"
    seeds = ", ".join(f"seed {seed}: {why}" for seed, why in list(out.items())[:3])
    more = ", ..." if len(out) > 3 else ""
    return f"{len(out)} diverged or failed ({seeds}{more})"
