"""Collect the warnings that the runs recorded, which a reader must know before trusting a score.

If the objective's share of the gradient at the trunk is exactly zero, the auxiliary loss cannot have changed
the score, whatever the statistics say, unless what it predicts is injected into the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from jepa_lm.study.losses import NODES
from jepa_lm.study.runs import Run
from jepa_lm.utils.nested import at

SHARE = "trunk_gradient_share"
OWN_DOCUMENT = 0.01
"""Share of a placebo's rows with a target of their own document that a reader must know of."""
REACH = "the objective does not reach the trunk"
"""Start of the run's own warning about a share of zero; the report replaces it with one that has counts."""


def of_run(run: Run) -> list[str]:
    """Return the cautions of one run."""
    summary = run.summary
    jepa = summary.get("jepa") or {}
    said = [str(text) for text in jepa.get("warnings") or [] if not str(text).startswith(REACH)]
    skipped = summary.get("skipped_steps")
    found = [_share(run), *said, *map(str, summary.get("unfinished") or [])]
    if jepa.get("collapse") and not said:
        found.append(f"collapse: {at(jepa, 'collapse', 'kind') or jepa['collapse']}")
    own = at(summary, "placebo", "own_document")
    if own and own >= OWN_DOCUMENT:
        found.append(f"{own:.0%} of the rows got the placebo's target from their own document")
    if any(at(run.config, node, "placebo") for node in NODES) and "placebo" not in summary:
        found.append(
            "did not record how many of the placebo's targets were from the row's own document"
        )
    if skipped:
        found.append(f"left out {skipped} steps whose gradient was NaN or infinite")
    if at(summary, "git", "dirty"):
        found.append("ran on source code with uncommitted changes, which its commit does not show")
    return [text for text in found if text]


def alarms(runs: Collection[Run]) -> list[str]:
    """Return what makes a verdict on these runs doubtful, in a few words each, for its headline."""
    alone = [run for run in runs if not at(run.config, "model", "injector")]
    found = {
        "the objective's gradient did not reach the trunk": [run for run in alone if _share(run)],
        "latents collapsed": [run for run in runs if at(run.summary, "jepa", "collapse")],
        "steps were skipped": [run for run in runs if run.summary.get("skipped_steps")],
    }
    return [f"{what} in {len(of)} of {len(runs)} runs" for what, of in found.items() if of]


def is_regularized(run: Run) -> bool:
    """Return whether the run's objective has regularizers beside its prediction."""
    parts = at(run.config, "jepa", "regularizers") or {}
    weighed = at(run.config, "jepa", "regularizers_weight") != 0
    return weighed and any(at(parts, name, "weight") for name in parts)


def together(arms: Mapping[str, Mapping[str, Run]]) -> list[str]:
    """Return the cautions of all finished runs; equal ones are merged, with their arms and seeds."""
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
    """Return a warning if the gradient of a loss at the trunk was exactly zero although it has a weight."""
    weighed = (node for node in NODES if at(run.config, node, "weight") != 0)
    return next(filter(None, (_share_of(node, run) for node in weighed)), "")


def _share_of(node: str, run: Run) -> str:
    measured = [value for _, value in run.series(f"{node}/{SHARE}")]
    last = at(run.summary, node, SHARE)
    zeros = measured.count(0.0)
    if last != 0.0 and not zeros:
        return ""
    if zeros and zeros < len(measured):
        when = f"in {zeros} of {len(measured)} measurements, where the objective did not reach the trunk"
    else:
        when = (
            "in every measurement: the objective's gradient did not reach the trunk, so the auxiliary loss "
            "did not train it"
        )
    return f"{node}/{SHARE} was exactly zero {when}"


def _arms(found: Mapping[str, Iterable[str]]) -> str:
    return "; ".join(f"{name} (seed {', '.join(seeds)})" for name, seeds in found.items())
