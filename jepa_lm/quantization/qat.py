"""Quantization-aware training (QAT): train with the weights as export will store them.

Once QAT has started, every step runs forward and backward with the quantized weights and updates the full
ones:

    w_stored = fake_quantize(w);  g = d loss(w_stored) / d w_stored;  w <- update(w, g)

This is fake quantization with a straight-through gradient. The model's own tensors hold the quantized values
during a step, so any reader (a compiled function, a kernel, another rank) sees them, and names and
checkpoints do not change.
Source: submissions #903 (from the first step) and #1243 (late).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from jepa_lm.quantization.formats import Cast, Format, Integer, as_matrix
from jepa_lm.quantization.parts import ScaleDtype
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import PositiveShare, Share, checked

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class QATSchedule:
    """Schedule of quantization-aware training; with neither `start` nor `lr_below` set, there is none.

    Args:
        start: share of the budget at which QAT starts; 0 is the first step.
        lr_below: start when the factor on the learning rates falls below this.
        clip: clip of integer formats during training, in place of their own (quantiles of every row in
            every step are slow); None keeps their own.
        scale_dtype: dtype of the scales during training; None keeps the stored one (#903: float32, stored as
            bfloat16).

    Raises:
        UserError: a value is out of range, or both `start` and `lr_below` are set.
    """

    @checked
    def __init__(
        self,
        *,
        start: Share | None,
        lr_below: Share | None,
        clip: PositiveShare | None,
        scale_dtype: ScaleDtype | None = None,
    ) -> None:
        if start is not None and lr_below is not None:
            raise UserError(
                f"quantization.training: set start or lr_below, not both (start={start}, "
                f"lr_below={lr_below})"
            )
        self.start, self.lr_below = start, lr_below
        self.clip, self.scale_dtype = clip, scale_dtype

    @property
    def ever(self) -> bool:
        """True if QAT starts at some point."""
        return self.start is not None or self.lr_below is not None

    def active(self, progress: float, lr_factor: float) -> bool:
        """Return whether a step at this progress, with this factor on the learning rates, uses QAT."""
        if self.start is not None:
            return progress >= self.start
        return self.lr_below is not None and lr_factor < self.lr_below

    def formats(self, formats: Mapping[str, Format]) -> dict[str, Format]:
        """Return the formats to use in training: no plain casts, and this schedule's clip and scales."""
        found = {name: f for name, f in formats.items() if not isinstance(f, Cast)}
        if self.clip is None and self.scale_dtype is None:
            return found
        # Keep one object for all tensors of a rule: tensors that share a format are quantized together.
        scaled = {
            id(f): f.scaled_by(clip=self.clip, scale_dtype=self.scale_dtype)
            if isinstance(f, Integer)
            else f
            for f in found.values()
        }
        return {name: scaled[id(f)] for name, f in found.items()}


class FakeQuantizedWeights:
    """Swaps a model's weights for their quantized values, and back.

    Args:
        model: its parameters are changed in place. formats: formats of the parameters to swap, by name.
    """

    def __init__(self, model: nn.Module, formats: Mapping[str, Format]) -> None:
        self.names = sorted(formats)
        parameters = dict(model.named_parameters())
        self.weights: list[Tensor] = [parameters[name] for name in self.names]
        # Rows are quantized independently, so matrices of the same width can be quantized as one.
        groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        self._formats: dict[tuple[int, int, int], Format] = {}
        for i, name in enumerate(self.names):
            kind = formats[name]
            together = getattr(kind, "rows_are_alone", False)
            key = (id(kind), as_matrix(self.weights[i]).shape[1], -1 if together else i)
            groups[key].append(i)
            self._formats[key] = kind
        self._groups = dict(groups)
        self._full: list[Tensor] | None = None
        self._buffers: dict[int, Tensor] = {}

    @property
    def values(self) -> int:
        """Number of values that are swapped."""
        return sum(w.numel() for w in self.weights)

    @torch.no_grad()
    def swap_in(self) -> None:
        """Swap in the quantized weights; do nothing if they are in already."""
        if self._full is not None:
            return
        # Swap storage: nothing is copied, in or out.
        self._full = [w.data for w in self.weights]
        for key, members in self._groups.items():
            kind, rows = self._formats[key], [as_matrix(self._full[i]) for i in members]
            if _joined(rows[0]):
                joined = kind.fake_quantize(torch.cat(rows)).split([len(r) for r in rows])
                # DDP's compiler puts weights that share memory into one bucket, so each has its own.
                fake_quantized = [
                    self._buffer(i, part) for i, part in zip(members, joined, strict=True)
                ]
                torch._foreach_copy_(fake_quantized, list(joined))
            else:
                fake_quantized = [kind.fake_quantize(matrix) for matrix in rows]
            for i, part in zip(members, fake_quantized, strict=True):
                self.weights[i].data = part.view_as(self._full[i])

    def _buffer(self, i: int, like: Tensor) -> Tensor:
        """Return the memory that holds the quantized values of weight i in every step."""
        if i not in self._buffers:
            self._buffers[i] = torch.empty_like(like, memory_format=torch.contiguous_format)
        return self._buffers[i]

    def swap_out(self) -> None:
        """Restore the full weights."""
        if self._full is None:
            return
        for weight, full in zip(self.weights, self._full, strict=True):
            weight.data = full
        self._full = None

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Use the quantized weights inside the block; restore the previous state afterwards."""
        if self._full is not None:
            yield
            return
        self.swap_in()
        try:
            yield
        finally:
            self.swap_out()


def _joined(matrix: Tensor) -> bool:
    """Return whether to quantize matrices as one: few launches; a CPU is faster on what fits its cache."""
    return matrix.is_cuda


def stored_copy(model: AnyModule, formats: Mapping[str, Format]) -> AnyModule:
    """Return a copy of a model with weights as if stored in these formats and loaded.

    Weights may be parameters or, in a moving average, buffers.
    """
    copied = copy.deepcopy(model)
    tensors = dict(copied.named_parameters()) | dict(copied.named_buffers())
    with torch.no_grad():
        for name, kind in formats.items():
            tensors[name].copy_(kind.fake_quantize(tensors[name].detach()))
    return copied
