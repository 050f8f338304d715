"""study.json: what a sweep or a study has planned, written before its first job starts.

A group is what is averaged over seeds: one setting of a sweep, or one arm of a study. A comparison
holds two groups against each other, seed by seed. The runs' own records say how they went.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jepa_lm.errors import UserError
from jepa_lm.files import write_json

FILE = "study.json"
FORMAT = 1


@dataclass(frozen=True)
class Job:
    """One run."""

    folder: str
    """Below the folder of the sweep."""
    overrides: tuple[str, ...]
    """What its command line would be."""
    config_hash: str
    """Of the resolved config; equal for runs that compute the same."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    name: str
    says: str
    """What it is, in a few words; may be empty."""
    settings: Mapping[str, str]
    """What was swept, without the seed: `{"jepa.weight": "0.05"}`."""
    runs: Mapping[str, str]
    """Folder by seed. Groups may share runs."""


@dataclass(frozen=True)
class Comparison:
    """A group (the treatment) against another (the control)."""

    of: str
    against: str
    role: str
    """weight_0, regularizers_only, prediction_only, placebo, ...: the control's part in the argument."""
    differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Keys of the resolved configs that differ, with the values of `against` and of `of`."""


@dataclass(frozen=True)
class Identity:
    """Two runs that have to be the same model, bit for bit."""

    runs: tuple[str, str]
    says: str


@dataclass(frozen=True)
class Manifest:
    """The whole plan."""

    name: str
    kind: str
    """`sweep` or `study`."""
    match: str | None
    """What the arms of a study have in common: `steps` or `time`."""
    command: tuple[str, ...]
    """What the user typed."""
    jobs: tuple[Job, ...]
    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...] = ()
    identities: tuple[Identity, ...] = ()
    not_applicable: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Reasons by treatment and arm."""
    notes: tuple[str, ...] = ()
    """What the plan leaves out of what was asked for."""

    def group(self, name: str) -> Group:
        """The group of that name."""
        return next(g for g in self.groups if g.name == name)

    def save(self, folder: Path) -> None:
        """Write study.json."""
        write_json(folder / FILE, {"format": FORMAT, **asdict(self)})


def load(folder: Path) -> Manifest:
    """Read study.json.

    Raises:
        UserError: there is none, or it is of another version.
    """
    path = folder / FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no {FILE} there; name the folder of a sweep or study"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if raw.pop("format", None) != FORMAT:
        raise UserError(f"{path}: written by another version of jepa_lm")
    return Manifest(
        name=raw["name"],
        kind=raw["kind"],
        match=raw["match"],
        command=tuple(raw["command"]),
        jobs=tuple(Job(j["folder"], tuple(j["overrides"]), j["config_hash"]) for j in raw["jobs"]),
        groups=tuple(Group(**g) for g in raw["groups"]),
        comparisons=tuple(
            Comparison(
                c["of"],
                c["against"],
                c["role"],
                {k: (a, b) for k, (a, b) in c["differences"].items()},
            )
            for c in raw["comparisons"]
        ),
        identities=tuple(Identity(tuple(i["runs"]), i["says"]) for i in raw["identities"]),
        not_applicable=raw["not_applicable"],
    )
