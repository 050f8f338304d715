"""Check what runs must have in common before their scores may be compared.

A control that ran on another code path explains nothing, so the differences found here are reported
before any verdict. The differences that arms are meant to have are in their configs, not here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jepa_lm.study.runs import Run
from jepa_lm.utils.nested import at

UNKNOWN = "not recorded"
OWN_PART = "objective"
"""Part that is compiled only if there is an objective; a control at weight 0 has none to compile."""
TIME_TOLERANCE = 1.05
"""Largest ratio between the seconds of training of arms that are compared at equal time."""


def facts(run: Run) -> dict[str, str]:
    """Return the facts that must agree between runs, by the names that messages use."""
    summary = run.summary
    return {
        "compile state": compile_state(summary),
        "precision": _text(summary.get("precision")),
        "ranks": _text(summary.get("ranks")),
        "device": _text(at(run.config, "trainer", "accelerator")),
        "source": _text(summary.get("source")),
        "validation bytes": _text(at(summary, "val", "bytes")),
        "validation tokens": _text(at(summary, "val", "tokens")),
        "scored weights": _text(at(summary, "val", "weights")),
        **{f"version of {k}": _text(v) for k, v in (summary.get("versions") or {}).items()},
    }


def told(run: Run) -> dict[str, str]:
    """Return the facts and the git state, which may differ because commits also change documentation."""
    return {**facts(run), "git commit": git_words(run.summary.get("git"))}


def apart(
    arms: Mapping[str, Sequence[Run]], match: str | None, other_budget: Collection[str] = ()
) -> list[str]:
    """Return the facts in which runs differ but must agree: `precision: 32-true (a), bf16-mixed (b)`.

    Args:
        arms: finished runs by the name of their arm.
        match: `steps`, `flops` or `time`, or None if the budgets need not agree.
        other_budget: arms that have another budget on purpose.
    """
    same = {name: runs for name, runs in arms.items() if name not in other_budget}
    known = [(name, facts(run)) for name, runs in arms.items() for run in runs]
    names = dict.fromkeys(key for _, found in known for key in found)
    problems = [_difference(key, known) for key in names]
    if match in ("steps", "flops"):
        steps = [(name, _steps(run)) for name, runs in same.items() for run in runs]
        problems.append(_difference("steps", steps))
    if match == "time":
        problems.append(_seconds(same))
    return [text for text in problems if text]


def compile_state(summary: Mapping[str, Any]) -> str:
    """Return `eager`, or the parts of the step that were compiled."""
    if "compiled" not in summary:
        return UNKNOWN
    if not summary["compiled"]:
        return "eager"
    parts = [part for part in summary.get("compiled_parts") or [] if part != OWN_PART]
    return f"compiled ({', '.join(parts)})" if parts else "compiled"


def git_words(git: Mapping[str, Any] | None) -> str:
    """Return the commit, whether the source had changes, and the digest of the changes if known."""
    if not git or not git.get("commit"):
        return UNKNOWN
    changed = "with changes" if git.get("dirty") else ""
    return " ".join(filter(None, (str(git["commit"])[:12], changed, git.get("diff"))))


def _steps(run: Run) -> dict[str, str]:
    return {"steps": _text(run.summary.get("steps"))}


def _difference(key: str, known: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """Return the values of one fact with the arms that have them; empty if all arms agree."""
    holders: dict[str, list[str]] = {}
    for name, found in known:
        holders.setdefault(found.get(key, UNKNOWN), []).append(name)
    if len(holders) < 2:
        return ""
    return f"{key}: " + ", ".join(f"{value} ({_names(arms)})" for value, arms in holders.items())


def _seconds(arms: Mapping[str, Sequence[Run]]) -> str:
    """Return the seconds of each arm if they differ by more than the tolerance, else an empty string."""
    found = {
        name: [s for run in runs if (s := run.summary.get("seconds"))]
        for name, runs in arms.items()
    }
    values = [s for seconds in found.values() for s in seconds]
    if not values or max(values) <= TIME_TOLERANCE * min(values):
        return ""
    means = (f"{sum(s) / len(s):.1f} ({name})" for name, s in found.items() if s)
    return f"seconds of training: {', '.join(means)}"


def _names(arms: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(arms))


def _text(value: Any) -> str:
    return UNKNOWN if value is None else str(value)
