"""The jobs and groups of a sweep or study, each of them once.

Jobs with the same resolved config are merged, so a control that several treatments share runs once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jepa_lm.study.manifest import Comparison, Group, Job, Manifest
from jepa_lm.study.request import NONE, SEED, WEIGHT, Compose, Composed, Request
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.provenance import config_hash

LONGEST_NAME = 80


@dataclass
class Planner:
    """Collects jobs and groups, each of them once."""

    compose: Compose
    jobs: dict[str, Job] = field(default_factory=dict)
    """Jobs by config hash."""
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Resolved configs by folder."""
    groups: dict[str, Group] = field(default_factory=dict)
    without_loss: int = 0
    """Number of combinations that set a weight but have no loss to weigh."""
    objectives: set[str] = field(default_factory=set)

    def settle(self, cell: dict[str, str], composed: Composed) -> dict[str, str]:
        """Return the settings that identify a combination: no weight if there is no loss to weigh."""
        self.objectives.add(composed.objective)
        if composed.objective != NONE or WEIGHT not in cell:
            return cell
        self.without_loss += 1
        return {key: value for key, value in cell.items() if key != WEIGHT}

    def notes(self, request: Request) -> tuple[str, ...]:
        """Return notes on what the plan leaves out of the request.

        Raises:
            UserError: weights are given, but no objective has a loss.
        """
        weights = request.weights()
        if not weights or NONE not in self.objectives:
            return ()
        if self.objectives == {NONE}:
            raise UserError(
                f"{weights}: objective=none has no loss to weigh; choose one, such as objective=vicreg"
            )
        several = self.without_loss > 1
        once = f", so {self.without_loss} combinations with it are run as one" if several else ""
        return (f"objective=none has no loss to weigh: it runs without {weights}{once}",)

    def add(
        self,
        name: str,
        composed: Composed,
        seeds: Sequence[int],
        *,
        says: str = "",
        settings: Mapping[str, str] | None = None,
        offset: int = 0,
    ) -> Group:
        """Plan the runs of a group, keyed by their seed without the offset."""
        runs = {}
        for seed in seeds:
            config = composed.resolved(seed + offset)
            key = config_hash(config)
            if key not in self.jobs:
                folder = f"{name}/seed-{seed + offset}"
                assert folder not in self.configs, f"two jobs in {folder}"
                at_seed = [w for w in composed.words if not w.startswith(f"{SEED}=")]
                overrides = (*at_seed, f"{SEED}={seed + offset}")
                self.jobs[key] = Job(folder, overrides, key)
                self.configs[folder] = config
            runs[str(seed)] = self.jobs[key].folder
        group = Group(name, says, dict(settings or {}), runs)
        self.groups[name] = group
        return group

    def manifest(
        self, request: Request, name: str, kind: str, comparisons: Sequence[Comparison] = ()
    ) -> Manifest:
        """Return the manifest of everything planned so far."""
        metrics = {config["metric"] for config in self.configs.values()}
        command = (*request.fixed, *(f"{key}={','.join(v)}" for key, v in request.axes.items()))
        return Manifest(
            name=name,
            kind=kind,
            match=None,
            command=command,
            jobs=tuple(self.jobs.values()),
            groups=tuple(self.groups.values()),
            comparisons=tuple(comparisons),
            notes=self.notes(request),
            metric=metrics.pop() if len(metrics) == 1 else None,
        )


def slug(settings: Mapping[str, str]) -> str:
    """Return a folder name for swept values, such as `jepa.weight-0.05_model.dim-64`."""
    text = "_".join(f"{key}-{value}" for key, value in settings.items())
    clean = re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_.")
    if clean == text.strip("_.") and len(clean) <= LONGEST_NAME:
        return clean or "all"
    return f"{clean[:LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
