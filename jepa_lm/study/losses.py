"""The losses of a config that are added to the cross entropy, and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepa_lm.utils.nested import at

NODES = ("jepa", "tokens")
"""Nodes of a config: the latent and the token objective."""
WEIGHTS = tuple(f"{node}.weight" for node in NODES)


def losses_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weight of each loss in a config, by node; a node without a loss has only a weight of 0."""
    return {
        node: found.get("weight")
        for node in NODES
        if isinstance(found := config.get(node), Mapping) and "_target_" in found
    }


def main_weight(config: Mapping[str, Any]) -> float | None:
    """Return the weight to show for a run: the latent loss's, else the token loss's; 0 without a loss."""
    found = losses_of(config)
    weight = at(config, next(iter(found), NODES[0]), "weight")
    return weight if isinstance(weight, int | float) and not isinstance(weight, bool) else None
