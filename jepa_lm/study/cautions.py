"""What a reader must know before believing a score: what the runs themselves warned of.

A share of exactly zero of the gradient at the trunk means that the auxiliary loss cannot be why a score
changed (trap 36), whatever the statistics say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jepa_lm.study.runs import Run

SHARE = "trunk_gradient_share"
REACH = "the objective does not reach the trunk"
"""How the run's own warning on a share of zero begins; the report has its own words, with counts."""


def of_run(run: Run) -> list[str]:
    """The cautions of one run."""
    summary = run.summary
    jepa = summary.get("jepa") or {}
    said = [str(text) for text in jepa.get("warnings") or [] if not str(text).startswith(REACH)]
    skipped = summary.get("skipped_steps")
    found = [_share(run), *said, *map(str, summary.get("unfinished") or [])]
    if jepa.get("collapse") and not said:
        found.append(f"collapse: {jepa['collapse']}")
    if skipped:
        found.append(f"left out {skipped} steps whose gradient was no number")
    if (summary.get("git") or {}).get("dirty"):
        found.append("ran on a source with uncommitted changes, which its commit does not tell")
    return [text for text in found if text]


def together(arms: Mapping[str, Mapping[str, Run]]) -> list[str]:
    """Those of all finished runs, equal ones told once with the arms and seeds that have them."""
    holders: dict[str, dict[str, list[str]]] = {}
    for name, runs in arms.items():
        for seed, run in runs.items():
            for text in of_run(run):
                holders.setdefault(text, {}).setdefault(name, []).append(seed)
    everyone = {name: list(runs) for name, runs in arms.items() if runs}
    return [
        f"{'all runs' if found == everyone else _arms(found)}: {text}"
        for text, found in holders.items()
    ]


def _share(run: Run) -> str:
    """A warning when the objective's gradient at the trunk was exactly zero."""
    measured = [value for _, value in run.series(f"jepa/{SHARE}")]
    last = (run.summary.get("jepa") or {}).get(SHARE)
    zeros = measured.count(0.0)
    if last != 0.0 and not zeros:
        return ""
    if zeros and zeros < len(measured):
        when = f"in {zeros} of {len(measured)} measurements: there the objective did not reach the trunk"
    else:
        when = (
            "in every measurement: the objective's gradient did not reach the trunk, so the auxiliary loss "
            "has not trained it"
        )
    return f"jepa/{SHARE} was exactly zero {when}"


def _arms(found: Mapping[str, Iterable[str]]) -> str:
    return "; ".join(f"{name} (seed {', '.join(seeds)})" for name, seeds in found.items())
