"""Holds the runs against their plan: what failed, what ran something else, what had to be equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jepa_lm.study.manifest import Identity, Manifest
from jepa_lm.study.runs import DAMAGED, Run


@dataclass(frozen=True)
class Failure:
    """A planned run without a score."""

    folder: str
    arms: str
    status: str
    reason: str


def broken(identities: Sequence[tuple[Identity, str]]) -> list[str]:
    """Runs that have to be the same and are not: something is wrong with the comparison itself."""
    return [
        f"{identity.says}, but the records of {' and '.join(identity.runs)} {found}"
        for identity, found in identities
        if found.startswith("differ")
    ]


def other_configs(plan: Manifest, runs: Mapping[str, Run]) -> list[str]:
    """Runs whose records are of another config than the one that was planned (trap 27)."""
    return [
        f"{job.folder} ({plan_of(plan, job.folder)}): ran another config than was planned"
        for job in plan.jobs
        if (recorded := runs[job.folder].summary.get("config_hash")) and recorded != job.config_hash
    ]


def damaged(runs: Mapping[str, Run]) -> list[str]:
    """What records hold that cannot be, and was left out of everything."""
    return [f"{below}: {text}" for below, run in runs.items() for text in run.damage]


def identity_in_words(folder: Path, identity: Identity) -> str:
    """Whether the records of two runs agree to the last digit."""
    left, right = (Run(folder / below) for below in identity.runs)
    if not (left.finished and right.finished):
        return "not checked: not both have finished"
    if left.nll != right.nll:
        return f"differ in validation: {left.nll} and {right.nll} nats per token"
    first, second = (dict(run.series("train/ce")) for run in (left, right))
    steps = [step for step in first if first[step] != second.get(step)]
    if steps or first.keys() != second.keys():
        return f"differ in training from step {min(steps or first.keys() ^ second.keys())} on"
    return f"agree to the last digit, in validation and at {len(first)} log points"


def failures(plan: Manifest, runs: Mapping[str, Run]) -> list[Failure]:
    """Planned runs without a score, with the reason as far as it was recorded."""
    return [
        Failure(below, plan_of(plan, below), *_reason(run))
        for below, run in runs.items()
        if not run.finished
    ]


def plan_of(plan: Manifest, below: str) -> str:
    """Arms and seeds that a run is planned for."""
    return ", ".join(
        f"{group.name} seed {seed}"
        for group in plan.groups
        for seed, folder in group.runs.items()
        if folder == below
    )


def _reason(run: Run) -> tuple[str, str]:
    """Status and reason of a run without a score."""
    if not run.folder.is_dir():
        return "not started", "there is no folder"
    if run.status == DAMAGED:
        return DAMAGED, "; ".join(run.damage)
    if error := run.summary.get("error"):
        return run.status, " ".join(str(error).split())
    if run.status == "finished":
        return "no score", "its validation gave no finite number"
    if run.status == "interrupted":
        return run.status, f"stopped after {run.summary.get('steps', '?')} steps"
    return run.status, "no summary.json: it is running, or was killed"
