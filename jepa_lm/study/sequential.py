"""Looks at a study before all of its seeds have run: what they cost, and when to stop.

fixed        one look, when all seeds have finished, at ALPHA
sequential   looks after 5, 8, 12 and 20 seeds, each at LEVEL; together they err as often as one look at ALPHA
             does, for a difference and for equivalence alike (by simulation: 5.0 % and 4.7 %)
open         looks at any time, by e-values (`jepa_lm.study.anytime`)

A sequential study ends at the first look at which every treatment has a word, or is unlikely to get one by
the last. The second rule, of futility, takes a little power and makes no error more frequent.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from scipy import stats

from jepa_lm.study.power import ALPHA, power
from jepa_lm.study.statistics import TAIL, Effect
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.metrics import METRICS, MetricName

Seeds = Literal["fixed", "sequential", "open"]
LOOKS = (5, 8, 12, 20)
"""Seeds at each look."""
LEVEL = 0.0164
"""Level of each look, for which four looks err in 5 % of studies together."""
SEQUENTIAL_TAIL = 6.5
"""Factor on the p of the tail test at each look, for which exponential differences at the margin are called
equal in 5 % of studies by four looks together."""
FUTILE = 0.1
"""A study stops if the chance of a word by the last look is smaller."""
UNDECIDED = ("no difference shown", "too few seeds")


def level_of(seeds: Seeds) -> float:
    """Return the level of the tests of one look."""
    return LEVEL if seeds == "sequential" else ALPHA


def tail_of(seeds: Seeds) -> float:
    """Return the factor on the p of the tail test at a planned look."""
    return SEQUENTIAL_TAIL if seeds == "sequential" else TAIL


def check_seeds(kind: Seeds, number: int, metric: MetricName | None) -> None:
    """Check that a study has the seeds for its looks.

    Raises:
        UserError: it has not, or its verdict counts seeds.
    """
    last = LOOKS[-1]
    if kind == "sequential" and number != last:
        raise UserError(
            f"study.seeds=sequential: looks after {', '.join(map(str, LOOKS))} seeds, so it needs {last}, "
            f"such as 'seed=range(1,{last + 1})'; {number} given"
        )
    if kind != "fixed" and metric is not None and METRICS[metric].bimodal:
        raise UserError(
            f"study.seeds={kind}: is for means over seeds; study.metric={metric} counts them, so use "
            "study.seeds=fixed"
        )


def looks(seeds: Seeds) -> str:
    """Return when a study is looked at, in words."""
    if seeds == "sequential":
        return f"after {', '.join(map(str, LOOKS[:-1]))} and {LOOKS[-1]} seeds, each at {LEVEL:g}"
    return {"fixed": "one, when all seeds have finished", "open": "any, by e-values"}[seeds]


def planned_at(seeds: Sequence[str], kind: Seeds) -> list[set[str]]:
    """Return the sets of seeds on which a verdict is the registered one."""
    if kind == "sequential":
        return [set(seeds[:look]) for look in LOOKS]
    return [set(seeds)]


def ends(judged: Iterable[tuple[str, Effect, Collection[Effect]]]) -> bool:
    """Return whether a sequential study stops at this look.

    Args:
        judged: word, difference from the baseline, and differences from the gates, of each treatment.
    """
    return all(word not in UNDECIDED or futile(effect, gates) for word, effect, gates in judged)


def futile(effect: Effect, gates: Collection[Effect] = ()) -> bool:
    """Return whether a word is unlikely by the last look, if true differences are those seen so far.

    A gain is as likely as against the control where it is least so; the other words need the baseline alone.
    """
    if effect.mean is None or not effect.std:
        return False
    last = LOOKS[-1]
    error = effect.std / math.sqrt(last)
    far = stats.t.isf(LEVEL, last - 1)
    above, below = ((side * effect.margin - effect.mean) / error for side in (1, -1))
    equivalent = max(0.0, float(stats.norm.cdf(above - far) - stats.norm.cdf(below + far)))
    asked = [effect, *gates] if effect.gains else [effect]
    return max(equivalent, min(_chance(e, effect.gains) for e in asked)) < FUTILE


def _chance(effect: Effect, gains: bool) -> float:
    """Return the chance that a difference is shown on this side by the last look; 1 if nothing is known."""
    if effect.std is None or effect.mean is None:
        return 1.0
    if effect.gains != gains:
        return 0.0  # less than half of LEVEL
    return power(effect.mean, effect.std, LOOKS[-1], LEVEL) if effect.std else 1.0
