"""Format numbers, settings, budget and data, in the same way in every part of a report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jepa_lm.study.runs import Run
from jepa_lm.utils.nested import at, class_name

NOTHING = "-"
"""Placeholder for a missing number."""


def score(value: float | None) -> str:
    """Format BPB or nats per token."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.4f}"


def signed(value: float | None) -> str:
    """Format a difference of scores, with its sign."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:+.4f}"


def between(ends: Sequence[float] | None, form: Any = score) -> str:
    """Format an interval."""
    if ends is None or not all(math.isfinite(end) for end in ends):
        return NOTHING
    return f"[{form(ends[0])}, {form(ends[1])}]"


def probability(value: float | None) -> str:
    """Format a p-value."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def count(value: float | None) -> str:
    """Format a whole number with separators of thousands."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def figure(value: float | None) -> str:
    """Format a diagnostic with three significant digits."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return "0" if value == 0 else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def ratio(value: float | None) -> str:
    """Format a ratio."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.2f}"


def flops(log_flops: float) -> str:
    """Format a compute, given its logarithm to the base 10: `2.1e12`."""
    return f"{10.0**log_flops:.2g}".replace("e+", "e")


def setting(value: Any) -> str:
    """Format a value of a config as it would be typed."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def number_of(amount: int, thing: str) -> str:
    """Return a count with its noun: `1 seed`, `5 seeds`."""
    return f"{amount:,} {thing}{'' if amount == 1 else 's'}"


def listed(words: Iterable[str]) -> str:
    """Join words: `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def not_applicable(reasons: Mapping[str, str]) -> str:
    """List the arms that do not apply to a treatment, grouped by reason; may be empty."""
    arms: dict[str, list[str]] = {}
    for arm, reason in reasons.items():
        arms.setdefault(reason, []).append(arm)
    told = (f"{listed(names)} ({reason})" for reason, names in arms.items())
    return f"Not applicable: {'; '.join(told)}." if arms else ""


def budget(runs: Iterable[Run], match: str | None) -> str:
    """Describe the budget of every run in one sentence."""
    runs = list(runs)
    limits = _values(_limit(run.config) for run in runs)
    tokens = sorted(t for run in runs if (t := run.summary.get("tokens")) is not None)
    said = " or, in other runs, ".join(limits) or "not recorded"
    if tokens:
        spent = count(tokens[0])
        said += f"; {spent if tokens[0] == tokens[-1] else f'{spent} to {count(tokens[-1])}'} training tokens"
    passes = sorted(p for run in runs if (p := run.summary.get("passes")) is not None)
    if known := _values(f"{x:,.2f}" if x >= 0.1 else f"{x:.2g}" for x in passes):
        said += (
            f"; passes over the training split: {' to '.join(dict.fromkeys((known[0], known[-1])))}"
        )
    matched = {
        "steps": "equal steps for all arms",
        "flops": "equal steps for all arms but those of equal FLOPs",
        "time": "equal training time for all arms",
    }
    if match in matched and len(limits) == 1:  # an arm may have another budget on purpose
        said += f"; {matched[match]}"
    return f"{said}."


def data(runs: Iterable[Run]) -> str:
    """Describe the training text and the size of the validation split."""
    runs = list(runs)
    names = _values(_corpus(run.config) for run in runs)
    scored = _values(_scored(run.summary.get("val") or {}) for run in runs)
    text = " or, in other runs, ".join(names) or "not recorded"
    return f"{text}; validation on {' or '.join(scored) or 'an unrecorded number of bytes'}."


def _scored(val: Mapping[str, Any]) -> str:
    tokens = f"{count(val.get('tokens'))} tokens"
    if val.get("bytes"):
        return f"{count(val['bytes'])} bytes ({tokens})"
    return f"{tokens} without bytes" if val.get("tokens") else ""


def model(runs: Iterable[Run]) -> str:
    """Describe the model."""
    return (" or, in other runs, ".join(_values(map(_model, runs))) or "not recorded") + "."


def _limit(config: Mapping[str, Any]) -> str:
    batch = at(config, "data", "batch_tokens")
    steps, seconds = (at(config, "trainer", key) for key in ("max_steps", "max_time"))
    limits = [f"{count(steps)} optimizer steps"] if steps else []
    limits += [f"{seconds:g} seconds of training"] if seconds else []
    if not limits:
        return ""
    return " or ".join(limits) + (f", {count(batch)} tokens a step" if batch else "")


def _corpus(config: Mapping[str, Any]) -> str:
    node = config.get("data") or {}
    corpus, tokenizer = node.get("corpus") or {}, node.get("tokenizer") or {}
    if "_target_" not in corpus:
        return ""
    where = corpus.get("folder") or corpus.get("path")
    text = f"{class_name(corpus)} corpus" + (f" ({where})" if where else "")
    if "_target_" in tokenizer:
        text += f", {class_name(tokenizer)} of {count(tokenizer.get('vocab_size'))} tokens"
    return text + (f", sequences of {node['seq_len']}" if node.get("seq_len") else "")


def _model(run: Run) -> str:
    node = run.config.get("model") or {}
    backbone = node.get("backbone") or {}
    shipped = at(run.summary, "parameters", "shipped")
    if "_target_" not in backbone or shipped is None:
        return ""
    size = f"{backbone['layers']} layers of width {node.get('dim')}" if "layers" in backbone else ""
    return ", ".join(
        x for x in (class_name(backbone), size, f"{count(shipped)} parameters that ship") if x
    )


def _values(found: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in found if text))
