"""What a sweep or study would run, without running it: its arms, runs, time and disk space."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jepa_lm.study.duration import Launching, durations
from jepa_lm.study.forecast import forecast, known_runs
from jepa_lm.study.manifest import Manifest
from jepa_lm.study.planned_arms import RunFlops
from jepa_lm.study.runs import Run
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.paths import LOGS, program
from jepa_lm.utils.quoting import one_line
from jepa_lm.utils.unknown_keys import LOSSES
from jepa_lm.utils.waiting import about

CheckpointBytes = Callable[[Mapping[str, Any]], int]
"""Returns the bytes of a checkpoint of a run with this resolved config."""


def dry_run(
    manifest: Manifest,
    configs: Mapping[str, Mapping[str, Any]],
    folder: Path,
    how: Launching,
    checkpoint_bytes: CheckpointBytes,
    flops: RunFlops,
) -> list[str]:
    """Return lines that describe a plan: its groups, runs, finished runs, time and disk space.

    Args:
        configs: resolved configs by job. folder: of the sweep; it is only read.
        how: how the jobs are launched. checkpoint_bytes: estimates the size of a run's checkpoints.
        flops: counts the FLOPs per token of a run.
    """
    finished = {job.folder for job in manifest.jobs if Run(folder / job.folder).finished}
    left = {run: config for run, config in configs.items() if run not in finished}
    later = how.total - len(manifest.jobs)
    alike = _alike(manifest, left)
    unplanned = [f"and {_runs(later)} that the search will draw"] if later else []
    return [
        f"{manifest.kind} {manifest.name} in {folder}, as it would be run:",
        *_groups(manifest, finished),
        *unplanned,
        f"{_runs(how.total)}, {len(finished)} of them already finished",
        *(f"note: {note}" for note in manifest.notes),
        f"time: {_time(left, later, durations(manifest.jobs, folder, how), how, alike, flops)}",
        f"disk: {_disk(left, later, alike, checkpoint_bytes)}",
    ]


def _groups(manifest: Manifest, finished: set[str]) -> list[str]:
    """Return a row for each group; groups may share runs."""
    title = "arm" if manifest.kind == "study" else "settings"
    rows = [(title, "runs", "finished", "")]
    for group in manifest.groups:
        done = len(finished.intersection(group.runs.values()))
        rows.append((group.name, str(len(group.runs)), str(done), group.says))
    width = max(len(row[0]) for row in rows)
    return [
        f"  {name:{width}}  {runs:>4}  {done:>8}  {says}".rstrip()
        for name, runs, done, says in rows
    ]


def _alike(manifest: Manifest, left: Mapping[str, Any]) -> list[list[str]]:
    """Return the runs that are left, those together that differ in the seed alone."""
    seen: set[str] = set()
    found = []
    for group in manifest.groups:
        new = [run for run in group.runs.values() if run in left and run not in seen]
        seen.update(new)
        found.append(new)
    return [runs for runs in found if runs]


def _time(
    left: Mapping[str, Mapping[str, Any]],
    later: int,
    took: list[float],
    how: Launching,
    alike: list[list[str]],
    flops: RunFlops,
) -> str:
    count, workers = len(left) + later, how.at_once
    if not count:
        return "none, all runs are finished"
    rounds = math.ceil(count / workers)
    at_once = f", {workers} at a time" if workers > 1 else ""
    if took:
        usual = statistics.median(took)
        if how.costs:  # runs of a ladder
            seconds = usual * sum(map(how.cost, left)) / workers
            known = f"by their FLOPs and the time of the {len(took)} finished"
            return f"{about(seconds)}: {_runs(count)}, {known}{at_once}"
        source = (
            f"the median of the {len(took)} finished" if len(took) > 1 else "as the finished one"
        )
        return f"{about(rounds * usual)}: {_runs(count)} of {about(usual)} each ({source}){at_once}"
    limits = [config["trainer"]["max_time"] for config in left.values()]
    if None in limits:
        return _estimated(left, later, how, alike, flops)
    most = max(limits)
    return (
        f"{about(rounds * most)} of training: {_runs(count)} of trainer.max_time={most:g} s{at_once}; "
        "compilation and validations come on top"
    )


def _estimated(
    left: Mapping[str, Mapping[str, Any]],
    later: int,
    how: Launching,
    alike: list[list[str]],
    flops: RunFlops,
) -> str:
    """Return the time by the finished runs below the folder of logs that are most like those left."""
    known, counted = known_runs(LOGS), {}
    seconds: dict[str, float] = {}
    sources: dict[Path, None] = {}
    for runs in alike:
        config = left[runs[0]]
        if config["trainer"]["max_steps"] is None:
            seconds |= dict.fromkeys(runs, config["trainer"]["max_time"])
            continue
        try:
            if known and (decides := _decides_flops(config)) not in counted:
                counted[decides] = flops(config)  # takes a second or more
            found = forecast(config, counted[decides], known) if known else None
        except UserError:
            raise
        except Exception as error:  # a part of the user's own that FLOPs cannot be counted of
            return f"unknown, the FLOPs of {runs[0]} cannot be counted ({one_line(error)})"
        if found is None:
            return (
                f"unknown, no run here or below {LOGS} has finished that could tell and trainer.max_time is "
                f"not set; after one of {program('train')} on this device it can be estimated"
            )
        seconds |= dict.fromkeys(runs, found[0])
        sources[found[1]] = None
    count, usual = len(left) + later, statistics.mean(seconds.values())
    at_once = f", {how.at_once} at a time" if how.at_once > 1 else ""
    first, *others = sources
    more = f" and {_runs(len(others))} more" if others else ""
    return (
        f"{about(math.ceil(count / how.at_once) * usual)}: {_runs(count)} of {about(usual)} each, estimated "
        f"by FLOPs from {first}{more}{at_once}"
    )


def _decides_flops(config: Mapping[str, Any]) -> str:
    """Return what the FLOPs per token of a run depend on: the draws of a tuned arm share theirs."""
    model = {key: value for key, value in config["model"].items() if key != "dropout"}
    losses = [{**(node := config[key] or {}), "weight": bool(node.get("weight"))} for key in LOSSES]
    trainer, data = config["trainer"], config["data"]
    steps = (trainer["max_steps"], trainer.get("accumulate_grad_batches"))
    return json.dumps([model, losses, steps, data["seq_len"], data["batch_tokens"]], default=str)


def _disk(
    left: Mapping[str, Mapping[str, Any]],
    later: int,
    alike: list[list[str]],
    checkpoint_bytes: CheckpointBytes,
) -> str:
    sizes: dict[str, int] = {}
    for runs in alike:  # they have checkpoints of one size
        sizes |= dict.fromkeys(runs, checkpoint_bytes(left[runs[0]]))
    if not sizes:
        return "none, all runs are finished"
    kept = {run: _kept(left[run]) for run in sizes}
    whole = sum(kept[run] * size for run, size in sizes.items()) * (1 + later / len(sizes))
    many, least, most = max(kept.values()), min(sizes.values()), max(sizes.values())
    span = _size(most) if least == most else f"{_size(least)} to {_size(most)}"
    return (
        f"about {_size(whole)}: {_runs(len(sizes) + later)}, up to {many} "
        f"checkpoint{'s' if many > 1 else ''} of about {span} in each"
    )


def _kept(config: Mapping[str, Any]) -> int:
    """Return how many checkpoints a run has kept at its end."""
    every, keep = config["checkpoint"]["every_n_steps"], int(config["checkpoint"]["keep"])
    steps = config["trainer"]["max_steps"]
    if every is None:
        return 1
    return keep if steps is None else min(keep, math.ceil(steps / every))


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
