"""Write folders of sweeps and studies as finished runs leave them, with scores that a test chooses."""

from __future__ import annotations

import copy
import csv
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa_lm.study.manifest import RUNG, Comparison, Group, Identity, Job, Manifest, Rung

CONFIG: dict[str, Any] = {
    "data": {
        "corpus": {"_target_": "jepa_lm.data.corpora.Austen"},
        "tokenizer": {"_target_": "jepa_lm.data.tokenizers.SentencePieceBPE", "vocab_size": 1024},
        "seq_len": 256,
        "batch_tokens": 2048,
        "seed": 1,
    },
    "model": {"dim": 192, "backbone": {"_target_": "jepa_lm.model.Transformer", "layers": 6}},
    "jepa": {"_target_": "jepa_lm.objective.LatentPrediction", "weight": 0.1},
    "trainer": {"max_steps": 400, "max_time": None, "accelerator": "cpu", "precision": "32-true"},
    "task_name": "train",
    "seed": 1,
}
SUMMARY: dict[str, Any] = {
    "status": "finished",
    "steps": 400,
    "tokens": 819200,
    "seconds": 100.0,
    "tokens_per_second": 8192.0,
    "parameters": {"shipped": 2072912, "training_only": 73728},
    "val": {"nll": 3.0, "bpb": 1.7, "tokens": 167287, "bytes": 465725, "weights": "raw"},
    "jepa": {},
    "frozen": [],
    "skipped_steps": 0,
    "unfinished": [],
    "ranks": 1,
    "precision": "32-true",
    "config_hash": "feefa85d7d0c754f",
    "source": "4656aac2b4dc",
    "git": {"commit": "4656aac2b4dcaa91c56c0084e4d0e3fab68ab139", "dirty": False},
    "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "lightning": "2.6.6"},
    "compiled": False,
    "compiled_parts": [],
    "written": "2026-11-21T10:33:31+0000",
}
JEPA = {
    "effective_rank": 40.0,
    "context_effective_rank": 35.0,
    "target_std_median": 0.8,
    "cosine": 0.7,
    "cosine_of_mean": 0.4,
    "r2": 0.3,
    "trunk_gradient_share": 0.12,
    "trunk_gradient_cosine": 0.2,
    "collapse": None,
    "warnings": [],
}
"""The last diagnostics of an objective that works."""
NATS = math.log(2) * 465725 / 167287
"""Nats per token for each bit per byte of this validation text."""


def write_run(
    folder: Path,
    bpb: float | None,
    *,
    seed: str = "1",
    weight: float = 0.1,
    objective: str = "vicreg",
    summary: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    jepa: Mapping[str, Any] | None = None,
    every: int = 20,
) -> Path:
    """Write a finished run; with `bpb=None` a run that has begun and left no summary."""
    folder.mkdir(parents=True, exist_ok=True)
    resolved = _merged(
        CONFIG, {"seed": int(seed), "data": {"seed": int(seed)}, "jepa": {"weight": weight}}
    )
    (folder / "config.json").write_text(json.dumps(_merged(resolved, config or {})))
    (folder / ".hydra").mkdir(exist_ok=True)
    choices = f"hydra:\n  runtime:\n    choices:\n      objective: {objective}\n      model: transformer\n"
    (folder / ".hydra" / "hydra.yaml").write_text(choices)
    measured = {} if weight == 0 else {**JEPA, **(jepa or {})}
    _write_metrics(folder / "metrics.csv", 1.75 if bpb is None else bpb, seed, measured, every)
    if bpb is not None:
        val = {**SUMMARY["val"], "bpb": bpb, "nll": bpb * NATS}
        record = {**SUMMARY, "seed": int(seed), "val": val, "jepa": measured}
        (folder / "summary.json").write_text(json.dumps(_merged(record, summary or {})))
    return folder


def study(
    folder: Path,
    scores: Mapping[str, Mapping[str, float]],
    *,
    against: Mapping[str, Mapping[str, str]] | None = None,
    settings: Mapping[str, Mapping[str, str]] | None = None,
    differences: Mapping[str, tuple[Any, Any]] | None = None,
    planned: Mapping[str, tuple[str, ...]] | None = None,
    runs: Mapping[str, Mapping[str, Any]] | None = None,
    **about: Any,
) -> Path:
    """Write study.json and a finished run for every score.

    Args:
        scores: BPB by arm and seed. against: controls by treatment and role. settings: by arm.
        differences: of every comparison. planned: seeds by arm that have no run. runs: more arguments
            of `write_run` by arm. about: other fields of the manifest.
    """
    groups, jobs = [], []
    for name, seeds in scores.items():
        more = dict((runs or {}).get(name, {}))
        more.setdefault("weight", 0.0 if name.startswith("control") else 0.1)
        below = {
            seed: f"{len(jobs) + i}"
            for i, seed in enumerate((*seeds, *(planned or {}).get(name, ())))
        }
        for seed, run in below.items():
            jobs.append(Job(run, (f"seed={seed}",), SUMMARY["config_hash"]))
            if seed in seeds:
                write_run(folder / run, seeds[seed], seed=seed, **more)
        groups.append(Group(name, "", (settings or {}).get(name, {}), below))
    changed = {"jepa.weight": (0.0, 0.1)} if differences is None else differences
    comparisons = tuple(
        Comparison(of, control, role, changed)
        for of, controls in (against or {}).items()
        for role, control in controls.items()
    )
    fields: dict[str, Any] = {
        "name": "weights",
        "kind": "study",
        "match": "steps",
        "command": ("jepa.weight=0,0.1", "seed=1,2,3"),
        **about,
    }
    fields["identities"] = tuple(Identity(*i) for i in fields.get("identities", ()))
    folder.mkdir(parents=True, exist_ok=True)
    plan = Manifest(jobs=tuple(jobs), groups=tuple(groups), comparisons=comparisons, **fields)
    plan.save(folder)
    return folder


def paired(
    base: float, apart: float, seeds: int = 5, noise: float = 0.001
) -> dict[str, dict[str, float]]:
    """Return `control` and `treatment` with scores that move together from seed to seed."""
    draw = random.Random(7)
    control = {str(seed): base + draw.gauss(0, 0.006) for seed in range(1, seeds + 1)}
    treatment = {seed: score + apart + draw.gauss(0, noise) for seed, score in control.items()}
    return {"control": control, "treatment": treatment}


def climbing(
    folder: Path,
    effects: Mapping[str, tuple[float, ...]],
    *,
    seeds: int = 5,
    noise: float = 0.001,
    log_flops: tuple[float, ...] = (11.0, 12.0, 13.0, 14.0),
    **more: Any,
) -> Path:
    """Write a study with a ladder, whose losses fall along a power law.

    Args:
        effects: differences at each rung, smallest first, by objective. noise: deviation of a difference.
        log_flops: of each rung. more: of `study`.
    """
    draw = random.Random(3)
    scores: dict[str, dict[str, float]] = {}
    settings, against, rungs = {}, {}, []
    for i, log in enumerate(log_flops):
        rung = f"r{i}"
        control = f"rung-{rung}/control"
        base = 1.2 + 0.8 * 10 ** (-0.3 * i)
        scores[control] = {str(s): base + draw.gauss(0, 0.004) for s in range(1, seeds + 1)}
        settings[control] = {RUNG: rung}
        rungs.append(Rung(rung, (f"model.dim={16 * (i + 1)}",), {control: log}))
        for objective, apart in effects.items():
            name = f"rung-{rung}_objective-{objective}/treatment"
            scores[name] = {
                s: b + apart[i] + draw.gauss(0, noise) for s, b in scores[control].items()
            }
            settings[name] = {RUNG: rung, "objective": objective}
            against[name] = {"weight_0": control}
    more = {"name": "scaling", "ladder": tuple(rungs)} | more
    runs = {
        name: {"weight": 0.1, "objective": of["objective"]}
        if "objective" in of
        else {"weight": 0.0}
        for name, of in settings.items()
    }
    for name, of in more.pop("runs", {}).items():
        runs[name] |= of
    return study(folder, scores, against=against, settings=settings, runs=runs, **more)


def _write_metrics(path: Path, bpb: float, seed: str, jepa: Mapping[str, Any], every: int) -> None:
    """Write log points on the way to the score, as the CSV logger does."""
    draw = random.Random(int(seed))  # equal batches for equal seeds
    measured = random.Random(int(seed))
    figures = [key for key, value in jepa.items() if isinstance(value, float)]
    columns = [
        "epoch",
        *(f"jepa/{key}" for key in figures),
        "step",
        "train/bpb",
        "train/ce",
        "val/bpb",
    ]
    with open(path, "w", newline="") as file:
        rows = csv.DictWriter(file, columns)
        rows.writeheader()
        for step in range(every - 1, 400, every):
            fallen = bpb + 2.5 * math.exp(-step / 60) + draw.gauss(0, 0.03)
            rows.writerow({"step": step, "train/bpb": fallen, "train/ce": fallen * NATS})
            if figures and (step + 1) % 100 == 0:
                late = 1 - math.exp(-step / 150)
                row = {
                    f"jepa/{key}": jepa[key] * late * measured.uniform(0.9, 1.1) for key in figures
                }
                rows.writerow({"step": step, **row})
        rows.writerow({"epoch": 0, "step": 399, "val/bpb": bpb})


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Join nested dictionaries; values of the second one win."""
    joined = copy.deepcopy(dict(base))
    for key, value in more.items():
        both = isinstance(value, Mapping) and isinstance(joined.get(key), dict)
        joined[key] = _merged(joined[key], value) if both else value
    return joined
