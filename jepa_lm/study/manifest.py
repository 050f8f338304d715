"""study.json: the plan of a sweep or study, written before its first job starts.

A group is averaged over its seeds: it is one setting of a sweep, or one arm of a study. A comparison
pairs two groups, seed by seed. The outcome of a run is in the run's own records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from jepa_lm.study.measure import FORMER_ESTIMANDS, Estimand
from jepa_lm.study.recorded import read
from jepa_lm.study.roles import BASELINES
from jepa_lm.study.sequential import Seeds
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import read_json, write_json
from jepa_lm.utils.metrics import MetricName
from jepa_lm.utils.quoting import literal

FILE = "study.json"
FORMAT = 1
RUNG = "rung"
"""Key of a group's settings that names its rung, in a study with a ladder (`jepa_lm.study.ladder`)."""
MOST_LOG_FLOPS = 40
"""Largest logarithm of a run's FLOPs that is accepted; all of the world's computers spend 10^29 in a year."""


@dataclass(frozen=True)
class Job:
    """One run."""

    folder: str
    """Path relative to the folder of the sweep."""
    overrides: tuple[str, ...]
    """The command line of the job."""
    config_hash: str
    """Hash of the resolved config; equal for runs that compute the same."""


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed."""

    name: str
    says: str
    """Description in a few words; may be empty."""
    settings: Mapping[str, str]
    """Swept values without the seed, such as `{"jepa.weight": "0.05"}`."""
    runs: Mapping[str, str]
    """Folders by seed. Groups may share runs."""


@dataclass(frozen=True)
class Comparison:
    """A group (the treatment, `of`) compared with another (the control, `against`)."""

    of: str
    against: str
    role: str
    """The control's role in the argument: weight_0, regularizers_only, prediction_only, placebo, ..."""
    differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Keys of the resolved configs that differ, with the values of `against` and of `of`."""
    gate: bool | None = None
    """Whether the treatment must be better than this control to help; None: as its role says."""


@dataclass(frozen=True)
class Identity:
    """Two runs that must be the same model, bit for bit."""

    runs: tuple[str, str]
    says: str
    of: tuple[str, ...] = ()
    """Runs of the treatment whose comparison rests on it; none: all that are compared with the second run."""

    @property
    def compared(self) -> tuple[str, ...]:
        """Runs whose comparison rests on it."""
        return self.of or self.runs[1:]


@dataclass(frozen=True)
class Rung:
    """A size and a budget at which all treatments of a study with a ladder are compared."""

    name: str
    overrides: tuple[str, ...]
    """What sets them."""
    log_flops: Mapping[str, float]
    """Logarithm to the base 10 of the training FLOPs of a run, by baseline."""


@dataclass(frozen=True)
class Registration:
    """What a study set out to show, see `jepa_lm.study.registration`."""

    date: str
    sha256: str
    """Of date and content."""
    content: Mapping[str, str]
    """In words by topic."""


@dataclass(frozen=True)
class Untuned:
    """A study before its arms were tuned: what is registered of it."""

    says: str
    """How each arm is tuned, in a phrase."""
    configs: Mapping[str, str]
    """Config hash of each arm's first run, by arm."""


@dataclass(frozen=True)
class Tuned:
    """What tuning found for an arm, see `jepa_lm.study.tuning`."""

    says: str
    """The draw in a phrase."""
    settings: Mapping[str, str]
    """Values by key; none if the config as it is was the best."""
    draw: int
    draws: int
    """Number of draws that have a score."""
    score: float
    """On the text for tuning, mean over its seeds."""
    as_configured: float | None
    """Score of the config as it is; None if it has none."""


@dataclass(frozen=True)
class Manifest:
    """The whole plan."""

    name: str
    kind: str
    """`sweep` or `study`."""
    match: str | None
    """The budget that the arms of a study share: `steps`, `time`, or `flops`, see `check_budget`."""
    command: tuple[str, ...]
    """Overrides of the command line, as the user typed them."""
    jobs: tuple[Job, ...]
    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...] = ()
    identities: tuple[Identity, ...] = ()
    not_applicable: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Why arms do not apply: reasons by treatment and arm."""
    compiled: bool | None = None
    """Whether a job with `compile=null` is compiled; None if the jobs set it differently, or from before it
    was kept."""
    metric: MetricName | None = None
    """What verdicts are about, see `jepa_lm.study.measure`; None: bits per byte, or nats without bytes."""
    estimand: Estimand = "budget"
    """The score at the budget, or the best of the validations within it."""
    seeds: Seeds = "fixed"
    """When the study is looked at, see `jepa_lm.study.sequential`."""
    planned: tuple[str, ...] = ()
    """All seeds of a study; a sequential one may end before the last."""
    ladder: tuple[Rung, ...] = ()
    """Rungs of a study at several sizes, smallest first; none: it has one size."""
    margin: float | None = None
    """Largest difference that does not matter, in the unit of the metric; None: see `measure_for`."""
    tuning: Mapping[str, Tuned] = field(default_factory=dict)
    """What tuning found, by arm; empty if nothing was tuned."""
    untuned: Untuned | None = None
    """What was planned before the arms were tuned; None if they are not."""
    registration: Registration | None = None
    """What a study set out to show; None for sweeps, and for studies that began without one."""
    notes: tuple[str, ...] = ()
    """Notes on what the plan leaves out of the request."""

    def group(self, name: str) -> Group:
        """Return the group with this name."""
        return next(g for g in self.groups if g.name == name)

    def baseline(self, of: str) -> str | None:
        """Return the control that the verdict on a treatment is about; None without a baseline."""
        against = {c.role: c.against for c in reversed(self.comparisons) if c.of == of}
        return next((against[role] for role in BASELINES if role in against), None)

    def log_flops(self, of: str) -> float:
        """Return log10 of the training FLOPs of the baseline's run, for a treatment on a ladder."""
        rung, baseline = self.group(of).settings[RUNG], self.baseline(of)
        assert baseline is not None
        return next(r.log_flops[baseline] for r in self.ladder if r.name == rung)

    def first(self, seeds: int) -> Manifest:
        """Return the plan of the first of its seeds alone."""
        kept = set(self.planned[:seeds])
        groups = tuple(
            replace(group, runs={s: run for s, run in group.runs.items() if s in kept})
            for group in self.groups
        )
        known = {run for group in groups for run in group.runs.values()}
        jobs = tuple(job for job in self.jobs if job.folder in known)
        return replace(self, groups=groups, jobs=jobs)

    def save(self, folder: Path) -> None:
        """Write study.json."""
        write_json(folder / FILE, {"format": FORMAT, **asdict(self)})


def load(folder: Path) -> Manifest:
    """Read study.json.

    Raises:
        UserError: it is missing, of another version, or not a valid plan of a sweep in this folder.
    """
    path = folder / FILE
    wrong: list[str] = []
    try:
        raw = read_json(path)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise UserError(f"{path}: written by another version of jepa_lm")
        estimand = str(raw.get("estimand", "budget"))
        raw["estimand"] = FORMER_ESTIMANDS.get(estimand, estimand)
        plan = read(Manifest, raw, "", wrong)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: there is no {FILE}; name the folder of a sweep or study"
        ) from error
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    assert isinstance(plan, Manifest)
    for problem in (*wrong, *_inconsistent(plan)):
        raise UserError(f"{path}: is not a valid plan of a sweep ({problem})")
    return plan


def _inconsistent(plan: Manifest) -> Iterator[str]:
    """Yield the problems of a plan: duplicate names, unknown references, paths that leave the folder."""
    folders = [job.folder for job in plan.jobs]
    groups = [group.name for group in plan.groups]
    for kind, names in (("jobs", folders), ("groups", groups)):
        if len(set(names)) < len(names):
            yield f"two {kind} have the same name"
    for folder in folders:
        parts = PurePath(folder).parts
        if (
            not parts
            or PurePath(folder).is_absolute()
            or ".." in parts
            or literal(folder) != folder
        ):
            yield f"{folder[:100]!r} is not a folder below it"
    known = set(folders)
    for group in plan.groups:
        if not known.issuperset(group.runs.values()):
            yield f"group {group.name[:100]!r} has a run that is not a job"
    for comparison in plan.comparisons:
        if not {comparison.of, comparison.against} <= set(groups):
            yield f"{comparison.of[:100]!r} is compared, but there is no such group"
    for identity in plan.identities:
        if not known.issuperset(identity.runs):
            yield f"{identity.says[:100]!r} is about runs that are not jobs"
    at = {rung.name: rung.log_flops for rung in plan.ladder}
    if len(at) < len(plan.ladder):
        yield "two rungs have the same name"
    for of in {c.of for c in plan.comparisons}.intersection(groups) if at else ():
        counted = at.get(plan.group(of).settings.get(RUNG, ""), {})
        if not 0 < counted.get(plan.baseline(of) or "", 0) < MOST_LOG_FLOPS:
            yield f"the ladder does not have the FLOPs of {of[:100]!r}"
