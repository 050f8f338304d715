"""`python -m jepa_lm.study.dashboard --entity ME --project jepa_lm`: save a W&B workspace for JEPA runs.

It needs the extra `dashboard` (wandb-workspaces). `--json` prints the workspace and needs no account.
Lines are drawn for each run, and as the mean of each W&B group with the range of its seeds.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from jepa_lm.utils.crash import command
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.output import say
from jepa_lm.utils.quoting import one_line

STEP, SECONDS = "trainer/global_step", "train/seconds"
NAME = "JEPA language models"
FINAL_BPB, BEST_BPB, FINAL_NATS = "final/bpb", "val/bpb.min", "final/nll"
"""Entries of a run's summary: the score at its end, the lowest of all validations, and what rows without
bytes have at their end."""

LINES: dict[str, dict[str, list[Any]]] = {
    "Rows without bytes, and their tasks": {
        "Validation, nats per token": ["val/nll"],
        "Validation, nats above the law's own score": ["val/above_floor"],
        "Accuracy of the tokens of answers": ["val/answer_accuracy"],
        "Share of rows solved, or whose arm is found": ["val/solved", "val/branch_accuracy"],
        "Margin of the node to be planned, nats": ["val/branch_margin"],
        "Share of answers that match the data's": [
            "val/exact_match",
            "val/same_words",
            "val/same_regex",
        ],
        "Accuracy of linear probes": ["val/probe_root", "val/probe_level_1", "val/probe_level_2"],
    },
    "Losses": {
        "Cross entropy, nats per token": ["train/ce"],
        "Whole latent loss, before its weight": ["jepa/loss"],
        "Its parts, before their weights": [
            "jepa/prediction",
            "jepa/variance",
            "jepa/covariance",
            "jepa/sigreg",
            "jepa/std",
            "jepa/spectrum",
        ],
        "Parts that are only measured": ["jepa/target_variance", "jepa/target_covariance"],
        "Share of the latent loss in the total": ["jepa/share"],
    },
    "Latents: do they collapse?": {
        "Effective rank of targets": ["jepa/effective_rank"],
        "Effective rank of predictions": ["jepa/prediction_effective_rank"],
        "Effective rank, as a share of the possible one": [
            "jepa/context_rank_share",
            "jepa/target_rank_share",
        ],
        "Spread, as a share of the root mean square": [
            "jepa/context_relative_spread",
            "jepa/target_relative_spread",
        ],
        "Share of dimensions that vary": ["jepa/context_alive_share", "jepa/target_alive_share"],
        "Spread of targets, median over dimensions": ["jepa/target_std_median"],
        "Cosine of prediction and target": ["jepa/cosine"],
        "The same for the mean target": ["jepa/cosine_of_mean"],
        "Share of the targets' variance that is predicted": ["jepa/r2"],
    },
    "Gradients": {
        "Share of the objective at the trunk": ["jepa/trunk_gradient_share"],
        "Cosine with cross entropy's at the trunk": ["jepa/trunk_gradient_cosine"],
        "Cosine of the step with that for cross entropy alone": ["jepa/trunk_step_cosine"],
        "Norm, before clipping": ["train/gradient_norm"],
    },
    "Schedules and speed": {
        "Weight of the objective": ["jepa/weight"],
        "Learning rates": [
            "lr-MuonAdamW/matrices",
            "lr-MuonAdamW/embeddings",
            "lr-MuonAdamW/vectors",
            "lr-MuonAdamW/head",
            "lr-MuonAdamW/auxiliary",
        ],
        "Tokens per second": ["train/tokens_per_second"],
    },
}
"""Metrics of each plot over steps, by section and title."""


def workspace(entity: str, project: str, name: str = NAME) -> Any:
    """Return the workspace of a project, not yet saved.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as spaces
    except ImportError as error:
        raise UserError(
            "the dashboard needs wandb-workspaces; pip install 'jepa_lm[dashboard]'"
        ) from error
    sections: list[Any] = [
        spaces.Section(name="Score", panels=_scores(panels), is_open=True),
        spaces.Section(name="Weight of the objective", panels=_weights(panels), is_open=True),
    ]
    for title, plots in LINES.items():
        lines: list[Any] = [panels.LinePlot(title=t, x=STEP, y=y) for t, y in plots.items()]
        sections.append(spaces.Section(name=title, panels=lines, is_open=True))
    settings = spaces.WorkspaceSettings(x_axis=STEP, max_runs=100)
    return spaces.Workspace(
        entity=entity, project=project, name=name, sections=sections, settings=settings
    )


def _scores(panels: Any) -> list[Any]:
    """Plot validation over steps and over seconds of training, by run, by group and by loss weight."""
    of_mean = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    groupings = {
        "each run": {},
        "mean of each group": {"groupby": panels.Metric("Group"), **of_mean},
        "mean of each jepa.weight": {"groupby": panels.Config("jepa.weight"), **of_mean},
    }
    return [
        panels.LinePlot(title=f"Bits per byte over {axis}, {who}", x=x, y=["val/bpb"], **grouping)
        for axis, x in (("steps", STEP), ("seconds of training", SECONDS))
        for who, grouping in groupings.items()
    ]


def _weights(panels: Any) -> list[Any]:
    """Plot settings against the score, with a point or a line for each run."""
    weight, final = panels.Config("jepa.weight"), panels.SummaryMetric(FINAL_BPB)
    best = panels.SummaryMetric(BEST_BPB)
    columns = {
        "jepa.weight": weight,
        "Muon's learning rate": panels.Config("optimizer.groups.matrices.lr"),
        "trunk gradient share": panels.SummaryMetric("jepa/trunk_gradient_share"),
        "effective rank": panels.SummaryMetric("jepa/effective_rank"),
        "cosine": panels.SummaryMetric("jepa/cosine"),
        "seconds": panels.SummaryMetric("seconds"),
        "final bits per byte": final,
    }
    parallel = [
        panels.ParallelCoordinatesPlotColumn(metric=metric, display_name=title)
        for title, metric in columns.items()
    ]
    return [
        panels.ScatterPlot(title="jepa.weight and the final bits per byte", x=weight, y=final),
        panels.ScatterPlot(
            title="jepa.weight and the final nats per token",
            x=weight,
            y=panels.SummaryMetric(FINAL_NATS),
        ),
        panels.ScatterPlot(title="jepa.weight and the best bits per byte", x=weight, y=best),
        panels.ParallelCoordinatesPlot(title="From settings to the score", columns=parallel),
        panels.ParameterImportancePlot(with_respect_to=FINAL_BPB),
    ]


def serialised(space: Any) -> str:
    """Return the JSON that saving sends to W&B."""
    return str(space._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def main(arguments: list[str] | None = None) -> int:
    """Save the workspace, or print it, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jepa_lm.study.dashboard", description=__doc__)
    parser.add_argument("--entity", required=True, help="user or team in W&B")
    parser.add_argument("--project", default="jepa_lm", help="project, as in logger.wandb.project")
    parser.add_argument("--name", default=NAME, help="name of the workspace")
    parser.add_argument("--json", action="store_true", help="print the workspace without saving it")
    asked = parser.parse_args(arguments)
    return command(lambda: _do(asked))


def _do(asked: argparse.Namespace) -> None:
    space = workspace(asked.entity, asked.project, asked.name)
    if asked.json:
        print(serialised(space))
    else:
        _save(space)


def _save(space: Any) -> None:
    import wandb

    try:
        space.save()
    except (wandb.errors.Error, OSError, ValueError) as error:
        reason = one_line(error).rstrip(".")
        raise UserError(f"--entity {space.entity} --project {space.project}: {reason}") from error
    say(space.url)


if __name__ == "__main__":
    sys.exit(main())
