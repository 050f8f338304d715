"""Assign a storage format to every parameter by role or name pattern; no parameter is left out silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from jepa_lm.model.roles import ROLES, matches, parameter_roles
from jepa_lm.quantization.calibration import GPTQSettings
from jepa_lm.quantization.formats import Format
from jepa_lm.quantization.qat import QATSchedule
from jepa_lm.utils.config import check_type, unknown_key
from jepa_lm.utils.errors import UserError


@dataclass(frozen=True)
class Rule:
    """Tensors of `ndim` dimensions and at least `min_values` values that any entry of `match` fits."""

    match: Sequence[str]
    min_values: int
    format: Format
    ndim: int | None = None
    """Number of dimensions; None for any."""


RULE = {"match": list[str], "min_values": int, "format": Any, "ndim": int | None}
"""Settings of a rule and their types."""
OF_A_FORMAT = ("name", "pack", "fake_quantize", "spec", "unpack")


class Policy:
    """Assigns a format to every parameter; rules are tried in order.

    Args:
        rules: rules by name: `match` (roles and name patterns), `min_values`, `format`, optionally `ndim`.
        training: schedule of quantization-aware training; None for none.
        gptq: GPTQ settings of export; None for plain rounding.
    """

    def __init__(
        self,
        *,
        rules: Mapping[str, Mapping],
        training: QATSchedule | None = None,
        gptq: GPTQSettings | None = None,
    ) -> None:
        self.gptq = gptq
        self.training = training or QATSchedule(start=None, lr_below=None, clip=None)
        self.rules = {
            name: _rule(f"quantization.rules.{name}", rule) for name, rule in rules.items()
        }

    def assign(self, model: nn.Module) -> dict[str, Format]:
        """Return the format of each parameter, by name.

        Raises:
            UserError: an entry fits no parameter, or no rule matches a parameter.
        """
        parameters = dict(model.named_parameters())
        roles = parameter_roles(model)
        for rule_name, rule in self.rules.items():
            for entry in rule.match:
                if not any(matches(entry, name, role) for name, role in roles.items()):
                    raise UserError(
                        f"quantization.rules.{rule_name}.match={entry}: fits no parameter; give a role "
                        f"({', '.join(ROLES)}) or a name pattern"
                    )
        return {name: self._format(name, roles[name], p) for name, p in parameters.items()}

    def _format(self, name: str, role: str, parameter: Tensor) -> Format:
        for rule in self.rules.values():
            fits = any(matches(entry, name, role) for entry in rule.match)
            if rule.ndim not in (None, parameter.ndim):
                continue
            if fits and parameter.numel() >= rule.min_values:
                return rule.format
        raise UserError(
            f"quantization.rules: no rule matches {name} ({role}, {parameter.numel()} values); add one "
            'that matches "*"'
        )


def _rule(path: str, node: Any) -> Rule:
    """Build a rule from its config node.

    Raises:
        UserError: a setting is missing, unknown or of the wrong type; names it.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"{path}={node}: a rule has {', '.join(RULE)}")
    for key in node:
        if key not in RULE:
            raise unknown_key(f"{path}.{key}", [f"{path}.{name}" for name in RULE], "a rule")
    for key, hint in RULE.items():
        if key not in node and key != "ndim":
            raise UserError(f"{path}.{key} is not set; a rule has {', '.join(RULE)}")
        check_type(f"{path}.{key}", node.get(key), hint)
    lacking = [part for part in OF_A_FORMAT if not hasattr(node["format"], part)]
    if lacking:
        raise UserError(
            f"{path}.format={node['format']}: a format of jepa_lm.quantization.formats with its _target_, or "
            f"one of your own, which must have {', '.join(lacking)}"
        )
    return Rule(**node)
