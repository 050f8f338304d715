"""Which tensor is stored in which format, by role or pattern of names, never silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from jepa_lm.errors import UserError
from jepa_lm.optim.routing import ROLES, matches, parameter_roles
from jepa_lm.quantization.calibration import Calibration
from jepa_lm.quantization.formats import Format
from jepa_lm.quantization.training import TrainingPlan


@dataclass(frozen=True)
class Rule:
    """Tensors that any entry of `match` fits, of `min_values` values or more, of `ndim` dimensions."""

    match: Sequence[str]
    min_values: int
    format: Format
    ndim: int | None = None
    """None: any."""


class Policy:
    """Assigns a format to every parameter; rules are tried in order.

    Args:
        rules: by name: `match` (roles and name patterns), `min_values`, `format`, optionally `ndim`.
        training: when training sees the stored weights; None: never.
        gptq: how export fits integers to what matrices read; None: it rounds.
    """

    def __init__(
        self,
        *,
        rules: Mapping[str, Mapping],
        training: TrainingPlan | None = None,
        gptq: Calibration | None = None,
    ) -> None:
        self.gptq = gptq
        self.training = training or TrainingPlan(start=None, lr_below=None, clip=None)
        self.rules = {name: Rule(**rule) for name, rule in rules.items()}

    def assign(self, model: nn.Module) -> dict[str, Format]:
        """The format of each parameter, by name.

        Raises:
            UserError: an entry that fits no parameter, or a parameter that no rule takes.
        """
        parameters = dict(model.named_parameters())
        roles = parameter_roles(model)
        for rule_name, rule in self.rules.items():
            for entry in rule.match:
                if not any(matches(entry, name, role) for name, role in roles.items()):
                    raise UserError(
                        f"quantization.rules.{rule_name}.match={entry}: fits no parameter; give a role "
                        f"({', '.join(ROLES)}) or a pattern of names"
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
            f"quantization.rules: no rule takes {name} ({role}, {parameter.numel()} values); add one "
            'that matches "*"'
        )
