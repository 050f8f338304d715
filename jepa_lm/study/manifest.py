"""study.json: what a sweep or a study has planned, written before its first job starts.

A group is what is averaged over seeds: one setting of a sweep, or one arm of a study. A comparison
holds two groups against each other, seed by seed. The runs' own records say how they went.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from jepa_lm.study.recorded import read
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import read_json, write_json
from jepa_lm.utils.quoting import literal

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
        UserError: there is none, it is of another version, or it is no plan of a sweep in this folder.
    """
    path = folder / FILE
    wrong: list[str] = []
    try:
        raw = read_json(path)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise UserError(f"{path}: written by another version of jepa_lm")
        plan = read(Manifest, raw, "", wrong)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no {FILE} there; name the folder of a sweep or study"
        ) from error
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    assert isinstance(plan, Manifest)
    for problem in (*wrong, *_inconsistent(plan)):
        raise UserError(f"{path}: is no plan of a sweep ({problem})")
    return plan


def _inconsistent(plan: Manifest) -> Iterator[str]:
    """What names something that is not there, or leads out of the folder."""
    folders = [job.folder for job in plan.jobs]
    groups = [group.name for group in plan.groups]
    for kind, names in (("jobs", folders), ("groups", groups)):
        if len(set(names)) < len(names):
            yield f"two {kind} have one name"
    for folder in folders:
        parts = PurePath(folder).parts
        if (
            not parts
            or PurePath(folder).is_absolute()
            or ".." in parts
            or literal(folder) != folder
        ):
            yield f"{folder[:100]!r} is no folder below it"
    known = set(folders)
    for group in plan.groups:
        if not known.issuperset(group.runs.values()):
            yield f"group {group.name[:100]!r} has a run that is no job"
    for comparison in plan.comparisons:
        if not {comparison.of, comparison.against} <= set(groups):
            yield f"{comparison.of[:100]!r} is compared, and there is no such group"
    for identity in plan.identities:
        if not known.issuperset(identity.runs):
            yield f"{identity.says[:100]!r} is about runs that are no jobs"
