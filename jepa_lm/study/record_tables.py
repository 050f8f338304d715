"""Tables of a report about the records of its runs, as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from jepa_lm.study.against_plan import plan_of
from jepa_lm.study.comparable import told
from jepa_lm.study.formatting import NOTHING
from jepa_lm.study.results import Results
from jepa_lm.study.table import Table

ALIKE = ("version of ", "source", "git commit")


def records(results: Results) -> Table:
    """Return compile state, precision, git state and versions, with the arms that have each value."""
    holders: dict[tuple[str, str], list[str]] = {}
    for arm in results.arms.values():
        for run in arm.runs.values():
            for key, value in told(run).items():
                holders.setdefault((key, value), []).append(arm.name)
    everyone = {arm.name for arm in results.arms.values() if arm.runs}
    rows = [
        (key, value, "all" if set(names) == everyone else ", ".join(dict.fromkeys(names)))
        for (key, value), names in sorted(
            holders.items(), key=lambda item: item[0][0].startswith(ALIKE)
        )
    ]
    return Table(("record", "value", "arms"), tuple(rows), words=3)


def hashes(results: Results) -> Table:
    """Return the config hash of every run, as planned and as recorded."""
    rows = [
        (
            job.folder,
            plan_of(results.manifest, job.folder),
            job.config_hash,
            str(run.summary.get("config_hash", NOTHING)),
            run.status,
        )
        for job in results.manifest.jobs
        for run in [results.runs[job.folder]]
    ]
    heads = ("run", "arm", "planned config", "recorded config", "status")
    return Table(heads, tuple(rows), 5, _to_runs(results, rows))


def tuning(results: Results) -> Table:
    """Return what tuning found for each arm."""
    rows = tuple(
        (
            name,
            found.says,
            str(found.draws),
            f"{found.score:.4f}",
            NOTHING if found.as_configured is None else f"{found.as_configured:.4f}",
        )
        for name, found in results.manifest.tuning.items()
    )
    return Table(("arm", "best draw", "draws", "its score", "as configured"), rows, 2)


def failures(results: Results) -> Table:
    """Return the planned runs without a score."""
    rows = tuple((f.folder, f.arms, f.status, f.reason) for f in results.failures)
    return Table(("run", "arm", "status", "reason"), rows, 4, _to_runs(results, rows))


def _to_runs(results: Results, rows: Sequence[tuple[str, ...]]) -> dict[tuple[int, int], str]:
    """Return addresses of the runs that the first column names."""
    found = ((i, results.address(row[0])) for i, row in enumerate(rows))
    return {(i, 0): address for i, address in found if address is not None}
