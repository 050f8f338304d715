"""Assign parameters to optimizer groups, and freeze those listed in `optimizer.freeze`.

The role of a parameter comes from the type of its module: `matrix` (weight of a Linear), `embedding`
(weight of an Embedding), `conv` (weight of a Conv1d), `vector` (everything else: gains, scales, biases,
skip weights). A module may override the role with `parameter_role` (the untied output head is `head`).
A rule that matches a parameter by a name pattern takes precedence over one that matches its role; among
equals the first rule wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from jepa_lm.model.roles import ROLES, matches, parameter_roles
from jepa_lm.utils.config import check_type
from jepa_lm.utils.errors import UserError


def freeze(model: nn.Module, entries: Sequence[str]) -> list[str]:
    """Freeze every parameter that a role or pattern of `optimizer.freeze` matches.

    Returns:
        The names of the frozen parameters, sorted.

    Raises:
        UserError: an entry matches no parameter.
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
    """Return the optimizer groups: settings of each rule with `name` and `params`, without empty groups.

    Args:
        rules: by group name: `match` (roles and name patterns) and the settings of the group.

    Raises:
        UserError: no rule matches a trainable parameter.
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
                f"optimizer.groups: no group matches {name} (role {roles[name]}); add its role to the "
                "match of a group, or list it in optimizer.freeze to keep its initial value"
            )
        taken[min(fitting, key=lambda fit: fit[0])[1]].append(name)
    return [
        {**{k: v for k, v in rule.items() if k != "match"}}
        | {"name": group, "params": [parameters[name] for name in taken[group]]}
        for group, rule in rules.items()
        if taken[group]
    ]
