"""Operations in the graphs of a step: their FLOPs, their bytes, and their names for a reader."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
MATRICES = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)
ATTENTION = {
    aten._scaled_dot_product_flash_attention: 4,
    aten._scaled_dot_product_flash_attention_backward: 11,
}
"""The place of `is_causal` among the arguments."""
SHOWN = 10


def flops_of(node: Node) -> int:
    """Return the FLOPs of a matrix product or of attention, of which a causal mask leaves half."""
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    if packet not in MATRICES and packet not in ATTENTION:
        return 0
    args = [value_of(a) for a in node.args]
    count: int = flop_registry[packet](*args, out_val=node.meta["val"])
    return count // 2 if packet in ATTENTION and args[ATTENTION[packet]] else count


def value_of(argument: Any) -> Any:
    """Return the fake value of an argument that is a node, or the argument."""
    return argument.meta["val"] if isinstance(argument, Node) else argument


def size(value: Any) -> int:
    """Return the bytes of all tensors in a value."""
    return sum(x.numel() * x.element_size() for x in tree_leaves(value) if isinstance(x, Tensor))


def bytes_of(node: Node) -> int:
    """Return the bytes of the inputs and outputs of a node."""
    return size([value_of(a) for a in node.args]) + size(node.meta["val"])


def _shape(value: Tensor) -> str:
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def inputs_of(node: Node) -> str:
    """Name an operation by its kind and the shapes of what it gets."""
    given = [value_of(a) for a in node.args[:3]]
    kind = node.target.overloadpacket.__name__  # type: ignore[union-attr]
    return f"{kind} {' '.join(_shape(x) for x in given if isinstance(x, Tensor))}"


def largest(nodes: list[Node]) -> list[Node]:
    """Return the nodes with the largest values."""
    return sorted(nodes, key=lambda node: -size(node.meta["val"]))[:SHOWN]


def described(node: Node) -> str:
    """Say how large a node's value is, and what made it."""
    value, custom = node.meta["val"], node.meta.get("custom", {})
    made = f"{node.target}".removeprefix("aten.")
    where = custom.get("module") or "the loss"
    return f"{size(value) / 1e9:.3f} GB {_shape(value)}: {made} in {where}"
