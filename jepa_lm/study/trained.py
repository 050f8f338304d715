"""Decide whether runs have trained long enough for close scores to mean that arms are equivalent.

Arms start as the same model, so after too short a run their scores are equal whatever the objective does.
Equivalence within the margin is not claimed if the runs are

    hardly trained   the score is less than a tenth below that of an untrained model, which gives all V tokens
                     of the vocabulary the same probability: BPB x ln V / (nats per token)
    too short        a step of training still improves the score by more than the margin: the fall of the
                     training score from the third to the last quarter of the run, divided by the steps
                     between; if the log is too short, the whole fall from the untrained score over all steps
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from jepa_lm.study.runs import Run
from jepa_lm.utils.nested import at

HARDLY = 0.1
LOG_POINTS = 8
"""Fewest log points of the training BPB that show its fall at the end of a run."""


def too_little(runs: Iterable[Run], margin: float, unit: str = "BPB") -> str:
    """Return why equal scores do not show equivalence, as a sentence; empty if they can.

    Args:
        runs: finished runs of both sides.
        margin: margin of the equivalence test, infinite for what is no loss. unit: of scores.
    """
    known = list(runs)
    learnt = [share for run in known if (share := _learnt(run)) is not None]
    if learnt and (share := statistics.median(learnt)) < HARDLY:
        return (
            f"The models have hardly trained: they are {share:.0%} below the score of an untrained one, so "
            "the arms cannot have diverged yet."
        )
    falls = [fall for run in known if (fall := _fall_of_a_step(run)) is not None]
    if falls and (fall := statistics.median(falls)) > margin:
        steps = max(run.summary.get("steps") or 0 for run in known)
        return (
            f"Each step of training still improves {unit} by {fall:.3f}, more than the {margin:g} that "
            f"count as equal, so {steps:,} steps are too few to show that arms are equivalent."
        )
    return ""


def _untrained(run: Run) -> float | None:
    """Return the score of a model that gives every token the same probability."""
    vocabulary = at(run.config, "data", "tokenizer", "vocab_size")
    if not vocabulary or vocabulary < 2 or not run.nll or not run.loss:
        return None
    return run.loss * math.log(vocabulary) / run.nll


def _learnt(run: Run) -> float | None:
    """Return by what share the score is below that of an untrained model."""
    start = _untrained(run)
    return None if start is None or run.loss is None else (start - run.loss) / start


def _fall_of_a_step(run: Run) -> float | None:
    """Return the fall of the score per step at the end of a run, or over all of it if its log is short."""
    column = "train/ce" if run.bpb is None else "train/bpb"
    points = sorted(dict(run.series(column)).items())
    if len(points) >= LOG_POINTS:
        half, quarter = len(points) // 2, len(points) // 4
        third, last = points[half : half + quarter], points[-quarter:]
        (step, bpb), (end, lowest) = (
            map(statistics.fmean, zip(*p, strict=True)) for p in (third, last)
        )
        return (bpb - lowest) / (end - step)
    start, steps = _untrained(run), run.summary.get("steps")
    if start is None or not steps or run.loss is None:
        return None
    return (start - run.loss) / steps
