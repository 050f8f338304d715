"""Roles of controls in the argument that an objective helps, as `study.arms.NAME.role` names them."""

from __future__ import annotations

BASELINES = {"weight_0": "weight 0", "none": "cross entropy alone", "control": "its control"}
"""Roles that can be the baseline, in order of preference, with their names in sentences."""
PLACEBO = "placebo"
EQUAL_FLOPS = "rival_equal_flops"
NONE_EQUAL_FLOPS = "none_equal_flops"
RIVALS = {"rival": "at equal steps", EQUAL_FLOPS: "at equal FLOPs"}
"""Roles of a loss on tokens that reads the same, with what the comparison keeps equal."""
GATES = (PLACEBO, "regularizers_only", "rival")
"""Roles that a treatment must be better than to help, unless an arm says otherwise."""
NAMES = {
    PLACEBO: "the placebo",
    "regularizers_only": "its regularizers alone",
    "rival": "its rival in token space",
    EQUAL_FLOPS: "its rival in token space at equal FLOPs",
    NONE_EQUAL_FLOPS: "cross entropy alone at equal FLOPs",
    "no_module": "a model without the module",
}
"""Names of other controls in sentences."""


def is_gate(role: str, gate: bool | None) -> bool:
    """Return whether a treatment must be better than this control to help.

    Args:
        gate: what its arm says; None: what its role says.
    """
    return role in GATES if gate is None else gate


def named(role: str) -> str:
    """Return the name of a control in a sentence; that of a further one has more words after the role."""
    first, space, more = role.partition(" ")
    known = NAMES.get(first, first.replace("_", " "))
    return f"{known}{space}{more}"
