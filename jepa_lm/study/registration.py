"""What a study set out to show: written into study.json, dated and hashed, before its first run starts.

A later start of the same study keeps it. The report tells what has changed since, and marks a verdict on
another question or on other seeds than the registered ones as exploratory: whoever adds seeds one at a time
until the word is welcome reaches a wrong "equivalent" in 20 studies of 100. A registration that was removed
or edited marks every verdict. One that was made anew, with its hash, does not; a hash that was published
before the first run ended shows that.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Mapping

from jepa_lm.study.exclusion import DEVIATIONS, MARGINS
from jepa_lm.study.formatting import flops
from jepa_lm.study.ladder import climbs
from jepa_lm.study.manifest import Manifest, Registration
from jepa_lm.study.measure import OF_A_SHARE, Measure
from jepa_lm.study.power import ALPHA
from jepa_lm.study.roles import is_gate
from jepa_lm.study.sequential import level_of, looks, planned_at
from jepa_lm.study.statistics import MARGIN
from jepa_lm.utils.files import without_nan

DEFAULT_MARGIN = (
    f"{MARGIN:g} nats per token of tokenized text and of rows, {MARGIN:g} BPB of bytes, {OF_A_SHARE:g} of "
    "a share"
)
FORMERLY = {"as docs/studies.md says": DEFAULT_MARGIN}
"""What registrations of earlier versions say, and what that is today."""
ASKED = (
    "question",
    "comparisons",
    "margin",
    "budget",
    "looks",
    "tests",
    "ladder",
    "trend",
    "tuning",
)
"""Topics of which a verdict is the answer: where one has changed, it is not the registered verdict."""


def register(plan: Manifest) -> Registration:
    """Return the registration of a study that is about to start."""
    content, date = contents(plan), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Registration(date, _digest(content, date), content)


def contents(plan: Manifest) -> dict[str, str]:
    """Return what a plan sets out to show, in words by topic."""
    measure = Measure(plan.metric or "val/bpb", plan.estimand)
    about = (
        measure.says
        if plan.metric
        else f"{measure.says}, or nats per token where there are no bytes"
    )
    treatments = dict.fromkeys(c.of for c in plan.comparisons)
    return {
        "question": f"Does the treatment change the {about}?",
        "comparisons": "; ".join(_compared(plan, name) for name in treatments) or "none",
        "margin": DEFAULT_MARGIN if plan.margin is None else f"{plan.margin:g} {measure.unit}",
        "budget": f"equal {plan.match}" if plan.match else "none",
        "seeds": ", ".join(plan.planned or dict.fromkeys(s for g in plan.groups for s in g.runs)),
        "looks": looks(plan.seeds),
        "tests": (
            f"{'e-values' if plan.seeds == 'open' else 'two-sided'} at {level_of(plan.seeds):g} against "
            "baseline and gates, Holm over treatments"
        ),
        "exclusion": (
            "no score for other reasons than the machine's, or worse than the level of its arm by more than "
            f"{DEVIATIONS} median absolute deviations and {MARGINS} margins"
        ),
        "arms": "; ".join(f"{group.name}: {group.says}" for group in plan.groups),
        **_ladder(plan),
        **_tuning(plan),
        **{f"config of {name}": digest for name, digest in configs_of(plan).items()},
    }


def configs_of(plan: Manifest) -> Mapping[str, str]:
    """Return the config hash of each arm's first run by arm, before any tuning."""
    if plan.untuned is not None:
        return plan.untuned.configs
    hashes = {job.folder: job.config_hash for job in plan.jobs}
    first = {group.name: next(iter(group.runs.values()), None) for group in plan.groups}
    return {name: hashes[run] for name, run in first.items() if run is not None}


def _tuning(plan: Manifest) -> dict[str, str]:
    """Return how the arms are tuned, or what they were tuned to if that was not registered before."""
    if plan.untuned is not None:
        return {"tuning": plan.untuned.says}
    best = (f"{name}: {found.says}" for name, found in plan.tuning.items())
    return {"tuned": "; ".join(best)} if plan.tuning else {}


def _ladder(plan: Manifest) -> dict[str, str]:
    """Return the ladder and the question that comes first where there is one."""
    if not plan.ladder:
        return {}
    rungs = (
        f"{rung.name}: {', '.join(rung.overrides)} "
        f"({', '.join(f'{flops(log)} FLOPs of {name}' for name, log in rung.log_flops.items())})"
        for rung in plan.ladder
    )
    return {
        "ladder": "; ".join(rungs),
        "trend": (
            "the primary comparison: the seeds' slopes of treatment minus baseline on the logarithm of the "
            f"baseline's FLOPs, by Student's t, two-sided at {ALPHA:g}, Holm over {len(climbs(plan))} trends"
        ),
    }


def _compared(plan: Manifest, name: str) -> str:
    gates = [c.against for c in plan.comparisons if c.of == name and is_gate(c.role, c.gate)]
    return f"{name} against {plan.baseline(name) or 'nothing'}" + (
        f", gates {', '.join(gates)}" if gates else ""
    )


def _digest(content: Mapping[str, str], date: str) -> str:
    text = json.dumps(without_nan([date, content]), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def told(plan: Manifest) -> list[str]:
    """Return what a reader must know of a study's registration, as sentences; none for a sweep."""
    if plan.kind != "study":
        return []
    found = plan.registration
    if found is None:
        why = (
            "it was removed" if plan.planned else "this study began before registrations were kept"
        )
        return [f"Not registered: {why}."]
    if not _as_it_was(found):
        return [
            f"The registration in study.json does not have its SHA-256 {found.sha256}: it was edited."
        ]
    now = contents(plan)
    changed = _changed(found, now, found.content)
    since = f" Changed since: {'; '.join(changed)}." if changed else " Nothing has changed since."
    before = (
        "after its draws and before its first run" if "tuned" in now else "before the first run"
    )
    return [f"Registered {found.date}, {before}, SHA-256 {found.sha256[:16]}.{since}"]


def exploratory(plan: Manifest, judged: Mapping[str, Collection[str]]) -> str:
    """Return why a verdict is not the registered one; empty if it is.

    Args:
        judged: seeds that are over, by arm with a say, the treatment first.
    """
    found = plan.registration
    if found is None:
        # Whatever writes the seeds of a study into its plan has registered it before.
        return "Exploratory: its registration was removed." if plan.planned else ""
    if not _as_it_was(found):
        return "Exploratory: its registration was edited."
    asked = (*ASKED, *(f"config of {name}" for name in judged))
    if changed := _changed(found, contents(plan), asked):
        return f"Exploratory: changed since it was registered: {'; '.join(changed)}."
    if plan.seeds == "open":
        return ""
    planned = [s for s in found.content.get("seeds", "").split(", ") if s]
    whole = [at for at in planned_at(planned, plan.seeds) if at == set(next(iter(judged.values())))]
    for place, (name, seeds) in enumerate(judged.items()):
        if set(seeds) not in whole:
            of = f" ({name})" if place else ""
            told = _which(set(seeds), planned)
            return f"Exploratory: registered for {len(planned)} seeds, judged on {told}{of}."
    return ""


def _as_it_was(found: Registration) -> bool:
    return _digest(found.content, found.date) == found.sha256


def _changed(found: Registration, now: Mapping[str, str], topics: Iterable[str]) -> list[str]:
    """Return what is planned otherwise than it was registered, of the registered ones of these topics."""
    before = ((topic, found.content[topic]) for topic in topics if topic in found.content)
    return [
        f"{topic} was {was}, now {now.get(topic, 'nothing')}"
        for topic, was in before
        if now.get(topic) not in (was, FORMERLY.get(was, was))
    ]


def _which(seeds: set[str], planned: list[str]) -> str:
    within = len(seeds & set(planned))
    other = len(seeds) - within
    return f"{within} of them" + (f" and {other} others" if other else "")
