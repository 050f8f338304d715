"""What makes verdicts doubtful, as sentences for headlines: a finding whose runs did not do what they should.

The words stand, because scores are scores; whoever reads only the headline must still know.
"""

from __future__ import annotations

from collections.abc import Sequence

from jepa_lm.study.cautions import alarms, is_regularized
from jepa_lm.study.treatments import Treatment
from jepa_lm.study.trend import Trend
from jepa_lm.study.verdict import GAINS

MOST_NAMED = 3
"""Number of treatments that are named with a doubt they share."""


def of_treatment(treatment: Treatment) -> str:
    """Return what makes a verdict doubtful, as a sentence; may be empty."""
    return _sentence(_doubts(treatment))


def of_several(treatments: Sequence[Treatment]) -> str:
    """Return the same of several verdicts, each doubt with the treatments that it is about."""
    holders: dict[str, list[str]] = {}
    for treatment in treatments:
        for doubt in _doubts(treatment):
            holders.setdefault(doubt, []).append(treatment.arm.label)
    return _sentence([f"{doubt} ({_named(labels)})" for doubt, labels in holders.items()])


def of_trend(trend: Trend) -> str:
    """Return the same of the verdicts at the rungs of a trend."""
    return _sentence([f"{d} at {p.rung}" for p in trend.points for d in _doubts(p.treatment)])


def _doubts(treatment: Treatment) -> list[str]:
    """Return doubts about the arms that the word depends on, in a few words each."""
    found = alarms(treatment.arm.runs.values())
    for name, arm in treatment.with_a_say.items():
        if name != treatment.arm.name:
            found += [f"{text} of {name}" for text in alarms(arm.runs.values())]
    roles = {a.comparison.role for a in treatment.against}
    regularized = any(map(is_regularized, treatment.arm.runs.values()))
    if treatment.word in GAINS and regularized and "regularizers_only" not in roles:
        found.append("it was not held against its regularizers alone")
    return found


def _sentence(doubts: Sequence[str]) -> str:
    return f"Doubtful: {'; '.join(doubts)}." if doubts else ""


def _named(labels: Sequence[str]) -> str:
    others = len(labels) - MOST_NAMED
    return ", ".join(labels[:MOST_NAMED]) + (f" and {others} more" if others > 0 else "")
