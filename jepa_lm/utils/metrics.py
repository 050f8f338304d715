"""What runs are judged by: the metrics of a validation, their units, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

MetricName = Literal[
    "val/bpb",
    "val/nll",
    "val/answer_accuracy",
    "val/solved",
    "val/branch_accuracy",
    "val/exact_match",
    "val/same_words",
    "val/same_regex",
    "val/probe_root",
    "val/probe_level_1",
    "val/probe_level_2",
    "val/probe_level_3",
    "val/probe_level_4",
    "val/probe_level_5",
    "val/probe_level_6",
    "val/probe_level_7",
    "val/probe_level_8",
    "val/probe_level_9",
    "val/probe_level_10",
    "val/probe_level_11",
    "val/probe_level_12",
    "val/probe_level_13",
]
"""Columns of metrics.csv; without `val/`, entries of `val` in summary.json and in eval.json."""
LOSSES: tuple[MetricName, ...] = ("val/bpb", "val/nll")
"""Metrics in nats or bits; all others are shares of 1."""
TRAINING: dict[str, str] = {"val/bpb": "train/bpb", "val/nll": "train/ce"}
"""Column of a metric in training; shares are only measured in validation."""
ABOVE_LAW = "nats above the law's own score"
"""What is said of a loss on rows whose law is known, less what no model can be expected to score below."""
PROBES = "val/probe_"
"""How the names of probes begin."""


class Quantity(NamedTuple):
    """What a metric measures."""

    unit: str
    """Unit, as numbers carry it."""
    says: str
    """Unit, for a sentence."""
    larger: bool = False
    """Whether larger is better."""
    bimodal: bool = False
    """Whether a run reaches about all or about nothing, so that means say little."""

    def worse(self, value: float) -> float:
        """Return a number that is the larger, the worse this value is."""
        return -value if self.larger else value


METRICS: dict[MetricName, Quantity] = {
    "val/bpb": Quantity("BPB", "bits per byte"),
    "val/nll": Quantity("nats", "nats per token"),
    "val/answer_accuracy": Quantity("accuracy", "accuracy of the tokens of answers", larger=True),
    "val/solved": Quantity("solved share", "share of rows solved", larger=True, bimodal=True),
    "val/branch_accuracy": Quantity(
        "branch accuracy", "share of rows whose arm is found, however they go on", larger=True
    ),
    "val/exact_match": Quantity(
        "exact matches", "share of answers equal to the data's", larger=True
    ),
    "val/same_words": Quantity(
        "same words", "share of answers equal to the data's but for white space", larger=True
    ),
    "val/same_regex": Quantity(
        "same expressions", "share of answers that are the data's regular expression", larger=True
    ),
    **{
        name: Quantity(
            "probe accuracy",
            f"accuracy of a linear probe of {name.removeprefix(PROBES).replace('_', ' ')}",
            larger=True,
        )
        for name in get_args(MetricName)
        if name.startswith(PROBES)
    },
}


def key_of(metric: MetricName) -> str:
    """Return the name of a metric within a score."""
    return metric.partition("/")[2]


def loss_of(score: Mapping[str, object]) -> MetricName:
    """Return what a score, a mapping with `bpb`, is told in: bits per byte of what has bytes, or nats."""
    return "val/nll" if score.get("bpb") is None else "val/bpb"


def measured(score: Mapping[str, object]) -> list[MetricName]:
    """Return the metrics that a score, a mapping of names to values, has."""
    return [metric for metric in METRICS if score.get(key_of(metric)) is not None]
