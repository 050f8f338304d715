"""Runs that are out of a comparison: those that diverged.

A run is out if it has no score, for other reasons than the machine's, or if its score is worse than its arm's
level by more than 6 median absolute deviations of the residuals and by more than 10 margins. Residuals are
scores minus their arm's median, pooled over the arms that have a say, so that an arm of few seeds does not
set its own standard; but the deviation is at most 10 margins above that of the tightest arm, so that blow-ups
of half the runs do not set it either. Without the rule, one finite blow-up among ten seeds takes all power
from a paired test; and if runs without a score were simply missing, an objective that kills six runs of ten
could be called a gain on the other four.

An arm's level is its median. Where most runs have diverged, the median is one of theirs: if its best run is
better than the median by more than the same limit, and the other arms with a say are where that run is (the
median of their medians is nearer to it than half of the way), the level is the median of the runs within the
limit of the best. Where they are not, a run so good is luck.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from jepa_lm.study.arm_result import ArmResult

DEVIATIONS = 6
"""Median absolute deviations of the residuals..."""
MARGINS = 10
"""...and margins by which a score is worse than its arm's level, to be out."""

Out = Mapping[str, str]
"""Why runs of an arm are out, by seed."""


def excluded(arms: Iterable[ArmResult], having_a_say: Iterable[ArmResult]) -> dict[str, Out]:
    """Return the runs of each arm that are out, by the arm's name."""
    known = [arm for arm in having_a_say if arm.scores]
    if any(arm.measure.quantity.bimodal for arm in known):
        return {arm.name: arm.failed for arm in arms}
    medians = {arm.name: _median(_worse(arm).values()) for arm in known}
    residuals = [[abs(x - medians[arm.name]) for x in _worse(arm).values()] for arm in known]
    pooled = _median(x for of in residuals for x in of) if known else 0.0
    tightest = min(map(_median, residuals), default=0.0)
    found: dict[str, Out] = {}
    for arm in arms:
        least = MARGINS * arm.measure.margin
        limit = max(least, DEVIATIONS * min(pooled, tightest + least))
        others = [median for name, median in medians.items() if name != arm.name]
        found[arm.name] = {**arm.failed, **_outlying(arm, limit, others)}
    return found


def _outlying(arm: ArmResult, limit: float, others: Collection[float]) -> Out:
    """Return the runs that are worse than the arm's level by more than a limit.

    Args:
        others: medians of the other arms with a say, the larger the worse.
    """
    worse = _worse(arm)
    if not worse:
        return {}
    level, named, best = _median(worse.values()), "median", min(worse.values())
    if level - best > limit and others and 2 * abs(_median(others) - best) < level - best:
        level, named = _median(x for x in worse.values() if x - best <= limit), "better runs"
    return {
        seed: f"{arm.scores[seed]:.4f} {arm.measure.unit}, far from the arm's {named}"
        for seed, value in worse.items()
        if value - level > limit
    }


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def _worse(arm: ArmResult) -> dict[str, float]:
    """Return the scores, the larger the worse."""
    return {seed: arm.measure.quantity.worse(score) for seed, score in arm.scores.items()}


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
