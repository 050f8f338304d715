"""Compare the runs with their plan: failures, changed configs, runs that must be equal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jepa_lm.study.manifest import Identity, Manifest
from jepa_lm.study.runs import DAMAGED, Run
from jepa_lm.utils.quoting import one_line

LOSSES = ("train/ce", "train/bpb", "train/loss")
"""Columns of losses in training; those of validation begin with `val/`."""
MOST_NAMED = 3
"""Number of runs that a message names."""
DIFFER = "differ"
"""Beginning of what is said of runs that should be equal and are not."""
UNCHECKED = "were not checked"
"""The same where one of them is missing."""


@dataclass(frozen=True)
class Failure:
    """A planned run without a score."""

    folder: str
    arms: str
    status: str
    reason: str


def broken(
    plan: Manifest,
    runs: Mapping[str, Run],
    identities: Sequence[tuple[Identity, str]],
    folders: Collection[str],
) -> list[str]:
    """Return why a treatment and its controls say nothing: a comparison that is not the planned one.

    Args:
        identities: pairs of runs that must be equal, with what their records say. folders: of the runs that
            are compared.
    """
    different = [
        f"{identity.says}, but the records of {' and '.join(identity.runs)} {found}"
        for identity, found in identities
        if found.startswith(DIFFER) and not set(folders).isdisjoint(identity.compared)
    ]
    other = [
        f"{job.folder} ({plan_of(plan, job.folder)})"
        for job in plan.jobs
        if job.folder in folders
        and (recorded := runs[job.folder].summary.get("config_hash"))
        and recorded != job.config_hash
    ]
    if other:
        more = f" and {len(other) - MOST_NAMED} more" if len(other) > MOST_NAMED else ""
        different.append(f"did not run the planned config: {', '.join(other[:MOST_NAMED])}{more}")
    return different


def damaged(runs: Mapping[str, Run]) -> list[str]:
    """Return a line for each invalid part of a record; these parts are left out of the report."""
    return [f"{below}: {text}" for below, run in runs.items() for text in run.damage]


def identity_in_words(folder: Path, identity: Identity) -> str:
    """Say whether the records of two runs agree to the last digit, in every loss that both logged."""
    left, right = (Run(folder / below) for below in identity.runs)
    if left.finished != right.finished and not (left.lost or right.lost):
        without = identity.runs[left.finished]
        return f"{DIFFER}: {without} has no score ({_reason(Run(folder / without))[1]})"
    if not (left.finished and right.finished):
        return f"{UNCHECKED}: the runs have not both finished"
    if left.nll != right.nll:
        return f"{DIFFER} in validation: {left.nll} and {right.nll} nats per token"
    names = set(left.columns) & set(right.columns)
    for name in sorted(name for name in names if name in LOSSES or name.startswith("val/")):
        first, second = (dict(run.series(name)) for run in (left, right))
        steps = [s for s in first.keys() | second.keys() if first.get(s) != second.get(s)]
        if steps:
            return f"{DIFFER} in {name}, starting at step {min(steps)}"
    return f"agree to the last digit, in validation and at {len(left.series(LOSSES[0]))} log points"


def failures(plan: Manifest, runs: Mapping[str, Run]) -> list[Failure]:
    """Return the planned runs without a score, with the reason if it was recorded."""
    return [
        Failure(below, plan_of(plan, below), *_reason(run))
        for below, run in runs.items()
        if not run.finished
    ]


def plan_of(plan: Manifest, below: str) -> str:
    """Return the arms and seeds that a run is planned for."""
    return ", ".join(
        f"{group.name} seed {seed}"
        for group in plan.groups
        for seed, folder in group.runs.items()
        if folder == below
    )


def _reason(run: Run) -> tuple[str, str]:
    """Return status and reason of a run without a score."""
    if not run.folder.is_dir():
        return "not started", "there is no folder"
    if run.status == DAMAGED:
        return DAMAGED, "; ".join(run.damage)
    if error := run.summary.get("error"):
        return run.status, one_line(error)
    if run.status == "finished":
        return "no score", "its validation gave no finite score"
    if run.status == "interrupted":
        return run.status, f"stopped after {run.summary.get('steps', '?')} steps"
    return run.status, "no summary.json: it is still running or was killed"
