"""Roles of parameters: matrix, embedding, conv, head or vector.

The type of the owning module decides the role; a module may override it with `parameter_role`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

ROLES = ("matrix", "embedding", "conv", "head", "vector")


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """Return the role of every parameter by name; a shared parameter appears once."""
    roles = {}
    seen = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            roles[f"{prefix}.{name}" if prefix else name] = _role(module, name)
    return roles


def _role(module: nn.Module, name: str) -> str:
    if name == "weight":
        role = getattr(module, "parameter_role", None)
        if role is not None:
            return role
        for kind, role in ((nn.Linear, "matrix"), (nn.Embedding, "embedding"), (nn.Conv1d, "conv")):
            if isinstance(module, kind):
                return role
    return "vector"


def matches(entry: str, name: str, role: str) -> bool:
    """Return whether `entry`, a role or a name pattern with * and ?, matches a parameter."""
    return entry == role or (entry not in ROLES and fnmatchcase(name, entry))
