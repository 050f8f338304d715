"""What whole runs leave in their folders."""

from __future__ import annotations

import csv
import json

import torch

from jepa_lm.checkpoint import read_checkpoint


def state(folder, prefix: str = "") -> dict[str, torch.Tensor]:
    found = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return {n: t for n, t in found.items() if n.startswith(prefix)}


def summary(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


def metrics(folder, column: str) -> list[float]:
    with open(folder / "metrics.csv", newline="") as file:
        return [float(r[column]) for r in csv.DictReader(file) if r.get(column)]


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
