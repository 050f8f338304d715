"""The jobs and groups of a sweep or study, each of them once.

Jobs with the same resolved config are merged, so a control that several treatments share runs once.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jepa_lm.study.losses import NODES
from jepa_lm.study.manifest import Comparison, Group, Job, Manifest
from jepa_lm.study.request import SEED, Compose, Composed, Request
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
    weightless: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Objectives of the combinations that lack a loss, by its node."""
    cells: int = 0
    """Number of combinations."""

    def settle(self, cell: dict[str, str], composed: Composed) -> dict[str, str]:
        """Return the settings that identify a combination: no weight if there is no loss to weigh."""
        self.cells += 1
        missing = [node for node in NODES if node not in composed.losses]
        for node in missing:
            self.weightless[node].append(composed.objective)
        without = [f"{node}.weight" for node in missing]
        return {key: value for key, value in cell.items() if key not in without}

    def notes(self, request: Request) -> tuple[str, ...]:
        """Return notes on what the plan leaves out of the request.

        Raises:
            UserError: weights are given, but no combination has a loss for them.
        """
        found = []
        for node in NODES:
            given, without = request.given(f"{node}.weight"), self.weightless[node]
            if not given or not without:
                continue
            named = f"objective={','.join(dict.fromkeys(without))}"
            if len(without) == self.cells:
                other = {"jepa": "objective=vicreg", "tokens": "objective=mtp"}[node]
                raise UserError(
                    f"{given}: {named} has no loss to weigh; choose one, such as {other}"
                )
            merged = f"{node}.weight" in request.axes and len(without) > 1
            once = f", so {len(without)} combinations with it are run as one" if merged else ""
            found.append(f"{named} has no loss to weigh: it runs without {given}{once}")
        return tuple(found)

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
