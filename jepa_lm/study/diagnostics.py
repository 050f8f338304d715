"""The measurements of an objective that a report shows: a column of a table, and a figure over steps."""

from __future__ import annotations

from typing import NamedTuple


class Diagnostic(NamedTuple):
    """How a measurement is shown."""

    head: str
    """Head of its column."""
    says: str = ""
    """Title of its figure; empty if it has none."""


DIAGNOSTICS = {
    "effective_rank": Diagnostic("effective rank", "effective rank of the targets (directions)"),
    "context_effective_rank": Diagnostic("rank of contexts"),
    "target_relative_spread": Diagnostic(
        "spread of targets", "spread of the targets (share of their root mean square)"
    ),
    "context_relative_spread": Diagnostic("spread of contexts"),
    "cosine": Diagnostic("cosine", "cosine of prediction and target"),
    "cosine_of_mean": Diagnostic("cosine of the mean target"),
    "r2": Diagnostic("R²", "R² of predictions (0 is the mean target)"),
    "r2_of_copy": Diagnostic("R² of copying"),
    "target_std_median": Diagnostic("target std", "median standard deviation of the targets"),
    "trunk_gradient_share": Diagnostic(
        "trunk gradient share", "objective's share of the trunk's gradient"
    ),
    "trunk_gradient_cosine": Diagnostic(
        "trunk gradient cosine", "cosine of its gradient with cross entropy's"
    ),
    "trunk_step_cosine": Diagnostic(
        "trunk step cosine", "cosine of the optimizer's step with that for cross entropy alone"
    ),
}
"""By the name in summary.json, which is also that of the column in metrics.csv, after `jepa/`."""
