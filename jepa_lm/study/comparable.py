"""What runs must have in common before their scores may be held against each other.

A control that ran on another code path explains nothing (trap 8, trap 25), so whatever differs here is
told before any verdict. What the arms are meant to differ in is in their configs, not here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jepa_lm.study.runs import Run

UNKNOWN = "not recorded"
OWN_PART = "objective"
"""Compiled only where there is an objective; the control at weight 0 has none to compile."""
TIME_TOLERANCE = 1.05
"""Seconds of training that arms of equal time may be apart, as a ratio."""


def facts(run: Run) -> dict[str, str]:
    """What a run did, by the names that a reader is told when two runs differ in it."""
    summary = run.summary
    val = summary.get("val") or {}
    trainer = run.config.get("trainer") or {}
    return {
        "compile state": compile_state(summary),
        "precision": _text(summary.get("precision")),
        "ranks": _text(summary.get("ranks")),
        "device": _text(trainer.get("accelerator")),
        "source": _text(summary.get("source")),
        "validation bytes": _text(val.get("bytes")),
        "validation tokens": _text(val.get("tokens")),
        "scored weights": _text(val.get("weights")),
        **{f"version of {k}": _text(v) for k, v in (summary.get("versions") or {}).items()},
    }


def told(run: Run) -> dict[str, str]:
    """The same and the git state, which may differ: commits also change documentation."""
    return {**facts(run), "git commit": git_words(run.summary.get("git"))}


def apart(
    arms: Mapping[str, Sequence[Run]], match: str | None, other_budget: Collection[str] = ()
) -> list[str]:
    """In what runs differ that have to agree, as `precision: 32-true (a), bf16-mixed (b)`.

    Args:
        arms: finished runs by the name of their arm. match: `steps` or `time`, or None where the arms
            only have their settings in common. other_budget: arms that are meant to have another budget.
    """
    same = {name: runs for name, runs in arms.items() if name not in other_budget}
    known = [(name, facts(run)) for name, runs in arms.items() for run in runs]
    names = dict.fromkeys(key for _, found in known for key in found)
    problems = [_difference(key, known) for key in names]
    if match == "steps":
        steps = [(name, _steps(run)) for name, runs in same.items() for run in runs]
        problems.append(_difference("steps", steps))
    if match == "time":
        problems.append(_seconds(same))
    return [text for text in problems if text]


def compile_state(summary: Mapping[str, Any]) -> str:
    """`eager`, or which parts of the step were compiled."""
    if "compiled" not in summary:
        return UNKNOWN
    if not summary["compiled"]:
        return "eager"
    parts = [part for part in summary.get("compiled_parts") or [] if part != OWN_PART]
    return f"compiled ({', '.join(parts)})" if parts else "compiled"


def git_words(git: Mapping[str, Any] | None) -> str:
    """Commit, whether it was changed, and the digest of the changes where there is one."""
    if not git or not git.get("commit"):
        return UNKNOWN
    changed = "with changes" if git.get("dirty") else ""
    return " ".join(filter(None, (str(git["commit"])[:12], changed, git.get("diff"))))


def _steps(run: Run) -> dict[str, str]:
    return {"steps": _text(run.summary.get("steps"))}


def _difference(key: str, known: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """The values of one fact with the arms that have them; empty when all have the same."""
    holders: dict[str, list[str]] = {}
    for name, found in known:
        holders.setdefault(found.get(key, UNKNOWN), []).append(name)
    if len(holders) < 2:
        return ""
    return f"{key}: " + ", ".join(f"{value} ({_names(arms)})" for value, arms in holders.items())


def _seconds(arms: Mapping[str, Sequence[Run]]) -> str:
    """What to say when arms of equal time did not take equal time."""
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
