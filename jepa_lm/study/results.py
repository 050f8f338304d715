"""Collect the results of a sweep for its report: arms, differences, verdicts, failures.

Everything is read from study.json and from the runs' own records; nothing is kept in memory from the
sweep that made them. Unfinished runs appear in the list of failures and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jepa_lm.study import manifest
from jepa_lm.study.against_plan import (
    Failure,
    broken,
    damaged,
    failures,
    identity_in_words,
)
from jepa_lm.study.arm_result import ArmResult, arm_of
from jepa_lm.study.cautions import together
from jepa_lm.study.comparable import apart
from jepa_lm.study.manifest import Identity, Manifest
from jepa_lm.study.measure import Measure, measure_for
from jepa_lm.study.runs import Run
from jepa_lm.study.treatments import Treatment, treatments
from jepa_lm.study.trend import Trend, trends
from jepa_lm.utils.paths import PAGE_FILE


@dataclass(frozen=True)
class Results:
    """Everything that a report shows."""

    folder: Path
    manifest: Manifest
    runs: Mapping[str, Run]
    """Every planned run by its folder."""
    arms: Mapping[str, ArmResult]
    treatments: tuple[Treatment, ...]
    trends: tuple[Trend, ...]
    """Trends of the treatments over the ladder of a study; none without one."""
    apart: tuple[str, ...]
    """Why the arms are not comparable, for a sweep without comparisons."""
    warnings: tuple[str, ...]
    failures: tuple[Failure, ...]
    identities: tuple[tuple[Identity, str], ...]
    """Pairs of runs that must be equal, with what their records say."""
    measure: Measure
    """What scores and verdicts are about."""

    def address(self, folder: str) -> str | None:
        """Return a link from the report to a run's own page, or else to its folder, or else None."""
        for name in (f"{folder}/{PAGE_FILE}", f"{folder}/"):
            if (self.folder / name).exists():
                return quote(name, errors="surrogateescape")
        return None

    @property
    def finished(self) -> list[Run]:
        """Runs that have a score."""
        return [run for run in self.runs.values() if run.finished]


def collect(folder: Path) -> Results:
    """Collect the results of a sweep or study.

    Raises:
        UserError: the folder has no study.json.
    """
    plan = manifest.load(folder)
    runs = {job.folder: Run(folder / job.folder) for job in plan.jobs}
    measure = measure_for(plan.metric, plan.estimand, runs.values(), plan.margin)
    arms = {group.name: arm_of(folder, group, measure) for group in plan.groups}
    by_arm = {arm.name: arm.runs for arm in arms.values()}
    everything = {name: list(found.values()) for name, found in by_arm.items()}
    identities = tuple((i, identity_in_words(folder, i)) for i in plan.identities)

    def not_planned(compared: Iterable[ArmResult]) -> list[str]:
        folders = {below for arm in compared for below in arm.group.runs.values()}
        return broken(plan, runs, identities, folders)

    judged = tuple(treatments(plan, arms, not_planned))
    return Results(
        folder=folder,
        manifest=plan,
        runs=runs,
        arms=arms,
        treatments=judged,
        trends=tuple(trends(plan, judged)),
        apart=() if judged else (*not_planned(arms.values()), *apart(everything, plan.match)),
        warnings=(*damaged(runs), *together(by_arm), *(text for t in judged for text in t.aside)),
        failures=tuple(failures(plan, runs)),
        identities=identities,
        measure=measure,
    )
