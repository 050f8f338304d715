"""Which optimizer group each parameter belongs to, and which parameters are frozen on purpose.

A parameter's role comes from the type of the module that owns it: `matrix` (weight of a Linear),
`embedding` (weight of an Embedding), `conv` (of a convolution), `vector` (everything else: gains,
scales, biases, skip weights). A module may name another role in `parameter_role` (the untied
output head is `head`). A rule that names a parameter, by a pattern, takes it before one that names its
role; among equals the first one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from jepa_lm.model.roles import ROLES, matches, parameter_roles
from jepa_lm.utils.config import check_type
from jepa_lm.utils.errors import UserError


def freeze(model: nn.Module, entries: Sequence[str]) -> list[str]:
    """Stop training every parameter that a role or pattern of `optimizer.freeze` fits.

    Returns:
        The frozen names, sorted.

    Raises:
        UserError: an entry fits nothing.
    """
    roles = parameter_roles(model)
    parameters = dict(model.named_parameters())
    frozen = set()
    for entry in entries:
        hit = [name for name, role in roles.items() if matches(entry, name, role)]
        if not hit:
            raise UserError(
                f"optimizer.freeze={entry}: fits no parameter; give a role ({', '.join(ROLES)}) or a "
                "pattern of names such as bigram.*"
            )
        frozen.update(hit)
    for name in frozen:
        parameters[name].requires_grad_(False)
    return sorted(frozen)


def route(model: nn.Module, rules: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Optimizer groups: each rule's settings with `name` and `params`; empty groups are left out.

    Args:
        rules: by group name: `match` (roles and name patterns) and the group's settings.

    Raises:
        UserError: a trainable parameter that no rule takes.
    """
    for group, rule in rules.items():
        check_type(f"optimizer.groups.{group}", rule, Mapping)
        check_type(f"optimizer.groups.{group}.match", rule.get("match"), list[str])
    roles = parameter_roles(model)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    taken: dict[str, list[str]] = {group: [] for group in rules}
    for name in parameters:
        fitting = [
            (entry in ROLES, group)
            for group, rule in rules.items()
            for entry in rule["match"]
            if matches(entry, name, roles[name])
        ]
        if not fitting:
            raise UserError(
                f"optimizer.groups: no group takes {name} (role {roles[name]}); add its role to a "
                "group's match, or list it in optimizer.freeze to leave it at its start"
            )
        taken[min(fitting, key=lambda fit: fit[0])[1]].append(name)
    return [
        {**{k: v for k, v in rule.items() if k != "match"}}
        | {"name": group, "params": [parameters[name] for name in taken[group]]}
        for group, rule in rules.items()
        if taken[group]
    ]
