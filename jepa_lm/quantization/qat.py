"""Training on weights as they will be stored (quantization-aware training, QAT).

From its start on, every step runs forward and backward at the snapped weights and updates the full ones:

    w_stored = fake_quantize(w);  g = d loss(w_stored) / d w_stored;  w <- update(w, g)

which is fake quantization with a straight-through gradient. The model's own tensors hold the snapped
values during a step, so whatever reads them (a compiled function, a kernel, another rank) sees those, and
names and checkpoints stay as they are.
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
from jepa_lm.quantization.parts import check_scale_dtype
from jepa_lm.utils.errors import UserError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class QATSchedule:
    """When training sees the stored weights. With nothing set, never.

    Args:
        start: share of the budget at which it begins; 0 is the first step.
        lr_below: begin when the factor on the learning rates falls below this.
        clip: of integers while training, in place of the stored ones' (quantiles of every row in every
            step are slow); None keeps theirs.
        scale_dtype: of integers while training; None keeps the stored one (#903: float32, stored bfloat16).

    Raises:
        UserError: two beginnings, or one outside [0, 1].
    """

    def __init__(
        self,
        *,
        start: float | None,
        lr_below: float | None,
        clip: float | None,
        scale_dtype: str | None = None,
    ) -> None:
        if start is not None and lr_below is not None:
            raise UserError(
                f"quantization.training: set start or lr_below, not both (start={start}, "
                f"lr_below={lr_below})"
            )
        for key, value in (("start", start), ("lr_below", lr_below)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"quantization.training.{key}={value}: must lie in 0 to 1")
        if scale_dtype is not None:
            check_scale_dtype(scale_dtype, "quantization.training.scale_dtype")
        self.start, self.lr_below = start, lr_below
        self.clip, self.scale_dtype = clip, scale_dtype

    @property
    def ever(self) -> bool:
        """Whether there is a beginning at all."""
        return self.start is not None or self.lr_below is not None

    def active(self, progress: float, lr_factor: float) -> bool:
        """Whether a step at this progress, with this factor on the learning rates, is one of them."""
        if self.start is not None:
            return progress >= self.start
        return self.lr_below is not None and lr_factor < self.lr_below

    def formats(self, formats: Mapping[str, Format]) -> dict[str, Format]:
        """Those that training has to learn to live with: no plain casts; with the plan's own scales."""
        found = {name: f for name, f in formats.items() if not isinstance(f, Cast)}
        if self.clip is None and self.scale_dtype is None:
            return found
        # One object for all tensors of a rule, as the rule had: they are snapped together.
        scaled = {
            id(f): f.scaled_by(clip=self.clip, scale_dtype=self.scale_dtype)
            if isinstance(f, Integer)
            else f
            for f in found.values()
        }
        return {name: scaled[id(f)] for name, f in found.items()}


class FakeQuantizedWeights:
    """Swaps a model's weights for what storing would make of them, and back.

    Args:
        model: its parameters are changed in place. formats: by the names of those to swap.
    """

    def __init__(self, model: nn.Module, formats: Mapping[str, Format]) -> None:
        self.names = sorted(formats)
        parameters = dict(model.named_parameters())
        self.weights: list[Tensor] = [parameters[name] for name in self.names]
        # Rows are stored one by one, so that matrices of one width can be snapped as one.
        groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        self._formats: dict[tuple[int, int, int], Format] = {}
        for i, name in enumerate(self.names):
            kind = formats[name]
            together = not isinstance(kind, Integer) or kind.rows_are_alone
            key = (id(kind), as_matrix(self.weights[i]).shape[1], -1 if together else i)
            groups[key].append(i)
            self._formats[key] = kind
        self._groups = dict(groups)
        self._full: list[Tensor] | None = None
        self.first_step: int | None = None
        """Of the run, in which the stored weights were used."""

    @property
    def values(self) -> int:
        """How many numbers are swapped."""
        return sum(w.numel() for w in self.weights)

    @torch.no_grad()
    def swap_in(self) -> None:
        """The weights as stored; nothing happens when they are in already."""
        if self._full is not None:
            return
        # The tensors change places: nothing is copied, in or out.
        self._full = [w.data for w in self.weights]
        for key, members in self._groups.items():
            kind, rows = self._formats[key], [as_matrix(self._full[i]) for i in members]
            if rows[0].is_cuda:  # few launches; a CPU is faster on what fits its cache
                fake_quantized = kind.fake_quantize(torch.cat(rows)).split([len(r) for r in rows])
            else:
                fake_quantized = tuple(kind.fake_quantize(matrix) for matrix in rows)
            for i, part in zip(members, fake_quantized, strict=True):
                self.weights[i].data = part.view_as(self._full[i])

    def swap_out(self) -> None:
        """The full weights again."""
        if self._full is None:
            return
        for weight, full in zip(self.weights, self._full, strict=True):
            weight.data = full
        self._full = None

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The weights as stored, inside; afterwards as they were before."""
        if self._full is not None:
            yield
            return
        self.swap_in()
        try:
            yield
        finally:
            self.swap_out()


def stored_copy(model: AnyModule, formats: Mapping[str, Format]) -> AnyModule:
    """A copy of a model with the weights that storing in these formats gives back.

    Weights may be parameters or, in a moving average, buffers.
    """
    copied = copy.deepcopy(model)
    tensors = dict(copied.named_parameters()) | dict(copied.named_buffers())
    with torch.no_grad():
        for name, kind in formats.items():
            tensors[name].copy_(kind.fake_quantize(tensors[name].detach()))
    return copied
