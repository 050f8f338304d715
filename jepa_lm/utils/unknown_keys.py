"""What was meant by a setting that does not exist, or by a word where a part belongs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Kind, entries_of, fits, part_of, shown, spell
from jepa_lm.utils.paths import CONF, options
from jepa_lm.utils.quoting import shell
from jepa_lm.utils.signatures import Signature, table

MOST = 8
"""Largest number of settings that a message names."""
CLOSE = 0.6
"""Least similarity of two names, from 0 to 1, for one to be a typing error of the other."""
CALLED = {
    "learning_rate": "lr",
    "batch_size": "batch_tokens",
    "num_layers": "layers",
    "num_heads": "heads",
    "hidden_size": "dim",
}
"""Names of settings in other programs, and their names here."""
MAIN = "optimizer.groups.matrices."
"""Settings of the group that holds most weights are named before those of others."""


class Loss(NamedTuple):
    """An auxiliary loss that a config may lack."""

    none: str
    """The choice that leaves it out."""
    such_as: str
    """A choice that does not."""
    target: str
    """The class that makes it."""


LOSSES = {
    "jepa": Loss("objective=none", "objective=patch", "jepa_lm.objective.LatentPrediction"),
    "tokens": Loss("tokens=none", "tokens=mtp", "jepa_lm.objective.TokenPrediction"),
}
"""Auxiliary losses by their nodes."""


def unknown_key(key: str, known: Iterable[str], where: str) -> UserError:
    """Return the error for an unknown key, with the known key that was probably meant."""
    known, key = list(known), shown(key)
    near = difflib.get_close_matches(key, known, n=1, cutoff=CLOSE)
    if found := _elsewhere(key, known, near):
        hint = f"did you mean {_some(found)}?"
    elif near and key.startswith(f"{near[0]}."):
        hint = f"{near[0]} has {_some([k for k in known if k.startswith(f'{near[0]}.')])}"
    else:
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:12]) or 'none'}"
    return UserError(f"{key}: {where} has no such setting; {hint}")


def _elsewhere(key: str, known: list[str], near: list[str]) -> list[str]:
    """Return the settings of this name at other places, unless only the place looks misspelled."""
    root, name = key.partition(".")[0], key.rpartition(".")[2]
    if near and near[0].count(".") == key.count(".") and near[0].rpartition(".")[2] == name:
        return []
    nodes = {k.rpartition(".")[0] for k in known}
    found = [k for k in known if k.endswith(f".{CALLED.get(name, name)}") and k not in nodes]
    found.sort(key=lambda k: (not k.startswith(MAIN), k.count(".")))
    return [k for k in found if k.partition(".")[0] == root] or found


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:MOST]) + ", ..." * (len(keys) > MOST)


def without_loss(key: str, value: Any, *, predicts_tokens: bool) -> UserError:
    """Return the error for a setting of a loss that is not there, and what it may be once one is chosen.

    Args:
        key: `jepa...` or `tokens...`. value: None if it is not known.
        predicts_tokens: another objective was chosen, a loss on tokens.
    """
    root, _, below = key.partition(".")
    loss, name = LOSSES[root], below.partition(".")[0]
    none = "an objective that predicts tokens" if predicts_tokens else loss.none
    settings = table()[loss.target].settings
    if name not in settings:
        return unknown_key(key, [f"{root}.{known}" for known in settings], none)
    wanted = _part_wanted(settings[name]) if below == name and isinstance(value, str) else None
    choices = None if wanted is None else _choices(key, value, wanted)
    then = f", and then {choices}" if choices else ""
    return UserError(f"{key}: {none} has no such setting; choose {loss.such_as} or another{then}")


def of_another(path: str, name: str, signature: Signature, caller: str) -> UserError | None:
    """Return the error for a key that only another class of this kind takes; None if there is none.

    Args:
        path: key of the node. caller: name of the class.
    """
    own = _parts(signature)
    others = {
        target: other
        for target, other in table().items()
        if name in other.settings and own & _parts(other)
    }
    if not others:
        return None
    named = " and ".join(f"{_short(target)}{_chosen(path, target)}" for target in others)
    return UserError(
        f"{path}.{name}: not a setting of {caller} but of {named}; {caller} has "
        f"{', '.join(signature.settings)}"
    )


def _parts(signature: Signature) -> set[str]:
    """Return the project's parts that a class can be; every module is also one of torch."""
    return {part for part in signature.makes or () if part.startswith("jepa_lm.")}


def _short(target: str) -> str:
    return target.rpartition(".")[2]


def _chosen(path: str, target: str) -> str:
    """Return how a main config group chooses a class, in brackets; empty if none does."""
    group = path.partition(".")[0]
    naming = re.compile(rf"_target_: *{re.escape(target)}\s")
    found = [
        name
        for name in options(group)
        if naming.search((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    ]
    return f" ({group}={'|'.join(found)})" if found else ""


def no_part(key: str, value: Any, kind: Kind) -> UserError | None:
    """Return the error for a plain value where a part belongs, with the choices; None if there is none."""
    if isinstance(value, Mapping):
        entries = {} if "_target_" in value else value
        below = (no_part(f"{key}.{k}", v, entries_of(kind, "mapping")) for k, v in entries.items())
        return next((error for error in below if error is not None), None)
    wanted = _part_wanted(kind)
    if wanted is None or fits(value, kind):
        return None
    choices = _choices(key, value, wanted)
    if choices is None:
        return None
    return UserError(f"{key}={shown(value)}: expected {spell(kind)}; {choices}")


def _part_wanted(kind: Kind) -> str | None:
    """Return the part that a kind asks for, if it does."""
    kinds = kind if isinstance(kind, list) else [kind]
    return next((part for part in map(part_of, kinds) if isinstance(part, str)), None)


def _choices(key: str, value: Any, wanted: str) -> str | None:
    """Return what gives a part, the nearest to a plain value as an example; None if nothing is known."""
    group = key.replace(".", "/")
    if (CONF / group).is_dir():
        return f"choose {group}={'|'.join(options(group))}"
    makers = {_short(target).lower(): target for target in _makers(wanted)}
    near = difflib.get_close_matches(str(value).lower(), makers, n=1, cutoff=0.0)
    if not near:
        return None
    target = makers[near[0]]
    needed = "".join(f",{name}:..." for name in table()[target].required)
    form = shell([f"{key}={{_target_:{target}{needed}}}"])
    return f"one of {', '.join(map(_short, makers.values()))}, given as {form}"


def _makers(part: str) -> list[str]:
    """Return the classes that make a part, from the folder where the part is defined."""
    room = ".".join(part.split(".")[:2])
    return [
        target
        for target, signature in table().items()
        if part in (signature.makes or ()) and target != part and target.startswith(f"{room}.")
    ]
