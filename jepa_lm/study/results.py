"""From the folder of a sweep to what its report says: arms, differences, verdicts, failures.

Everything is read from study.json and from the runs' own records; nothing is remembered from the
sweep that made them. Runs that have not finished count for nothing but the list of failures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jepa_lm.study import manifest, statistics
from jepa_lm.study.cautions import together
from jepa_lm.study.comparable import apart
from jepa_lm.study.manifest import Comparison, Group, Identity, Manifest
from jepa_lm.study.runs import Run
from jepa_lm.study.statistics import Effect, t_interval
from jepa_lm.study.verdict import BASELINES, verdict

NO_VERDICT = "no verdict"
"""Of a treatment without a baseline."""


@dataclass(frozen=True)
class Arm:
    """A group and its finished runs."""

    group: Group
    runs: Mapping[str, Run]
    """By seed."""

    @property
    def name(self) -> str:
        """As study.json has it."""
        return self.group.name

    @cached_property
    def bpb(self) -> dict[str, float]:
        """Bits per byte by seed."""
        return {seed: run.bpb for seed, run in self.runs.items() if run.bpb is not None}

    @cached_property
    def nll(self) -> dict[str, float]:
        """Nats per token by seed."""
        return {seed: run.nll for seed, run in self.runs.items() if run.nll is not None}

    @property
    def mean(self) -> float | None:
        """Of the bits per byte."""
        return float(np.mean(list(self.bpb.values()))) if self.bpb else None

    @property
    def std(self) -> float | None:
        """Of the bits per byte, n - 1 in the denominator."""
        return float(np.std(list(self.bpb.values()), ddof=1)) if len(self.bpb) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t interval of the mean."""
        if len(self.bpb) < 2:
            return None
        low, high = t_interval(np.array(list(self.bpb.values())))
        return float(low), float(high)


@dataclass(frozen=True)
class Against:
    """A treatment held against one of its controls."""

    comparison: Comparison
    control: Arm
    effect: Effect
    """Over the seeds that have finished on both sides."""


def role_of(against: Against) -> str:
    """The control's part in the argument, in words."""
    return against.comparison.role.replace("_", " ")


@dataclass(frozen=True)
class Treatment:
    """An arm with everything that it is held against."""

    arm: Arm
    against: tuple[Against, ...]
    word: str
    sentence: str
    apart: tuple[str, ...]
    """Why the arms are not comparable; empty when they are."""
    not_applicable: Mapping[str, str]
    """Reasons by control."""

    @property
    def main(self) -> Against:
        """The comparison with the baseline that the verdict is about, or the first there is."""
        roles = {a.comparison.role: a for a in reversed(self.against)}
        return next((roles[role] for role in BASELINES if role in roles), self.against[0])


@dataclass(frozen=True)
class Failure:
    """A planned run without a score."""

    folder: str
    arms: str
    status: str
    reason: str


@dataclass(frozen=True)
class Results:
    """All there is to report."""

    folder: Path
    manifest: Manifest
    runs: Mapping[str, Run]
    """Every planned run by its folder."""
    arms: Mapping[str, Arm]
    treatments: tuple[Treatment, ...]
    apart: tuple[str, ...]
    """As of the treatments, for a sweep that compares nothing."""
    warnings: tuple[str, ...]
    failures: tuple[Failure, ...]
    identities: tuple[tuple[Identity, str], ...]
    """With what the records say of each."""

    @property
    def finished(self) -> list[Run]:
        """Runs with a score."""
        return [run for run in self.runs.values() if run.finished]


def collect(folder: Path) -> Results:
    """Read a sweep or study.

    Raises:
        UserError: the folder has no study.json.
    """
    plan = manifest.load(folder)
    runs = {job.folder: Run(folder / job.folder) for job in plan.jobs}
    arms = {group.name: _arm(folder, group) for group in plan.groups}
    treatments = tuple(
        _treatment(plan, arms, name) for name in dict.fromkeys(c.of for c in plan.comparisons)
    )
    by_arm = {arm.name: arm.runs for arm in arms.values()}
    everything = {name: list(found.values()) for name, found in by_arm.items()}
    identities = tuple((i, _identity(folder, i)) for i in plan.identities)
    return Results(
        folder=folder,
        manifest=plan,
        runs=runs,
        arms=arms,
        treatments=treatments,
        apart=() if treatments else tuple(apart(everything, plan.match)),
        warnings=(*_broken(identities), *_others(plan, runs), *together(by_arm)),
        failures=tuple(_failures(plan, runs)),
        identities=identities,
    )


def _arm(folder: Path, group: Group) -> Arm:
    """The group with its finished runs, seeds in order."""
    found = {seed: Run(folder / below) for seed, below in group.runs.items()}
    return Arm(group, {s: found[s] for s in sorted(found, key=seed_order) if found[s].finished})


def seed_order(seed: str) -> tuple[float, str]:
    """Numbers by their size, before anything else."""
    return (float(seed), seed) if seed.lstrip("-").isdigit() else (math.inf, seed)


def _treatment(plan: Manifest, arms: Mapping[str, Arm], name: str) -> Treatment:
    """Everything that one group is held against."""
    compared = [c for c in plan.comparisons if c.of == name]
    effects, word, sentence = _judged(arms[name], {c.role: arms[c.against] for c in compared})
    against = tuple(Against(c, arms[c.against], effects[c.role]) for c in compared)
    known = {
        arm.name: list(arm.runs.values()) for arm in (arms[name], *(a.control for a in against))
    }
    return Treatment(
        arm=arms[name],
        against=against,
        word=word,
        sentence=sentence,
        apart=tuple(apart(known, plan.match)),
        not_applicable=plan.not_applicable.get(name, {}),
    )


def _judged(treatment: Arm, controls: Mapping[str, Arm]) -> tuple[Mapping[str, Effect], str, str]:
    """The one place that asks for statistics: effects by role, the verdict's word and its sentence."""
    effects = statistics.holm(
        {
            role: statistics.effect(
                treatment.bpb, control.bpb, nll_treatment=treatment.nll, nll_control=control.nll
            )
            for role, control in controls.items()
        }
    )
    if effects.keys().isdisjoint(BASELINES):
        return effects, NO_VERDICT, "It is not held against weight 0, so nothing can be said of it."
    said = verdict(effects)
    return effects, said.word, said.sentence


def _broken(identities: tuple[tuple[Identity, str], ...]) -> list[str]:
    """Runs that have to be the same and are not: something is wrong with the comparison itself."""
    return [
        f"{identity.says}: {' and '.join(identity.runs)} have to be the same run, but {found}"
        for identity, found in identities
        if found.startswith("differ")
    ]


def _others(plan: Manifest, runs: Mapping[str, Run]) -> list[str]:
    """Runs whose records are of another config than the one that was planned (trap 27)."""
    return [
        f"{job.folder} ({plan_of(plan, job.folder)}): ran another config than was planned"
        for job in plan.jobs
        if (recorded := runs[job.folder].summary.get("config_hash")) and recorded != job.config_hash
    ]


def _identity(folder: Path, identity: Identity) -> str:
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


def _failures(plan: Manifest, runs: Mapping[str, Run]) -> list[Failure]:
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
    if error := run.summary.get("error"):
        return run.status, " ".join(str(error).split())
    if run.status == "finished":
        return "no score", "its validation gave no finite number"
    if run.status == "interrupted":
        return run.status, f"stopped after {run.summary.get('steps', '?')} steps"
    return run.status, "no summary.json: it is running, or was killed"
