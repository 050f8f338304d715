"""What a loss beside the cross entropy is, whether it predicts latents or tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from jepa_lm.data.stream import Batch
from jepa_lm.model import Encoded, LanguageModel
from jepa_lm.model.unet import UNet
from jepa_lm.objective.placebo import other_rows
from jepa_lm.objective.step_context import Draws, StepContext, draw_now
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.schedules.factors import Schedule
from jepa_lm.utils.errors import UserError

LOSS = "loss"
"""Name of the whole loss among its components, where it is computed together with them."""


class AuxiliaryLoss(nn.Module):
    """A loss that the task adds to the cross entropy, multiplied by `scale`.

    Args:
        weight: factor on the whole loss. schedule: scheduled factor on it, or None.
        placebo: control in which a row's targets are those of another row of the batch.
        reach: the loss trains only the last n blocks of the trunk; None trains all of it.
    """

    node: ClassVar[str]
    """Key of its settings."""

    def __init__(
        self, *, weight: float, schedule: Schedule | None, placebo: bool, reach: int | None
    ) -> None:
        super().__init__()
        self.weight, self.schedule = weight, schedule
        self.placebo, self.reach = placebo, reach

    # ---- at the start of a run

    def check_reach(self, model: LanguageModel) -> None:
        """Raise UserError if `reach` exceeds the number of blocks."""
        if self.reach is not None and self.reach > model.layers:
            raise UserError(
                f"{self.node}.reach={self.reach}: 0 to the {model.layers} blocks, or null"
            )

    def keep_tables(self, backbone: UNet, seq_len: int, device: torch.device) -> None:
        """Make the tables that its passes and parts read."""

    # ---- weights over the clock

    def schedules_by_key(self) -> Mapping[str, Schedule | None]:
        """Return every schedule of the loss; None for one that is not set."""
        return {f"{self.node}.schedule": self.schedule}

    def phases(self) -> dict[str, list[dict[str, object]]]:
        """Return the phases of every schedule by its key, for `describe=true`."""
        return {key: s.phases() for key, s in self.schedules_by_key().items() if s}

    def scale(self, clock: ProgressClock) -> float:
        """Return the current factor on the loss."""
        if not self.weight:
            return 0.0
        return self.weight * (1.0 if self.schedule is None else self.schedule(clock))

    def active(self, clock: ProgressClock) -> bool:
        """Return whether the loss is currently part of the whole; never with weight 0."""
        return self.scale(clock) != 0

    def weights(self, clock: ProgressClock) -> dict[str, float]:
        """Return the current weight of each component within the loss."""
        raise NotImplementedError

    # ---- the loss

    def taps(self, model: LanguageModel) -> set[int]:
        """Return the blocks whose outputs the main pass has to keep."""
        return set()

    def main_needs(self, model: LanguageModel) -> tuple[tuple[int, ...], int | None]:
        """Return what the main pass has to keep: blocks to tap, and the block to cut at for `reach`."""
        cut = None if self.reach is None else model.layers - self.reach
        return tuple(sorted(self.taps(model))), cut

    def stand_in(self, inputs: Tensor) -> Batch:
        """Return a batch with these inputs [B, T] and every field that the parts read."""
        return {"inputs": inputs, "targets": inputs}

    def draw(self, inputs: Tensor, step_context: StepContext) -> StepContext:
        """Return the context with all that the parts will draw for inputs [B, T], beside what it holds."""
        drawn = self._draws(inputs, step_context)
        return replace(step_context, places={**step_context.places, **drawn})

    def _draws(self, inputs: Tensor, step_context: StepContext) -> dict[str, Draws]:
        """Return what the parts draw, by place."""
        raise NotImplementedError

    def components(
        self, model: LanguageModel, batch: Batch, main: Encoded, step_context: StepContext
    ) -> dict[str, Tensor]:
        """Return the unweighted components by name, for `total` and the log; this is compiled."""
        raise NotImplementedError

    def total(self, components: Mapping[str, Tensor], clock: ProgressClock) -> Tensor:
        """Return the loss before `scale`."""
        raise NotImplementedError

    def forward(
        self, model: LanguageModel, batch: Batch, main: Encoded, step_context: StepContext
    ) -> Tensor:
        """Return the loss before `scale`."""
        components = self.components(model, batch, main, step_context)
        return self.total(components, step_context.clock)

    # ---- the placebo

    def _draw_other_rows(
        self, rows: int, step_context: StepContext, device: torch.device
    ) -> dict[str, Draws]:
        """Return what a placebo draws, by place; empty without a placebo."""
        if not self.placebo:
            return {}
        return {self._placebo_place: other_rows(rows, step_context, device, self.node)}

    def _other_rows(self, rows: int, step_context: StepContext, device: torch.device) -> Tensor:
        """Return the row [B] whose target each row gets under a placebo."""
        drawn = step_context.at(self._placebo_place).drawn
        (order,) = drawn or draw_now(other_rows, rows, step_context, device, self.node)
        return order

    @property
    def _placebo_place(self) -> str:
        return f"{self.node}.placebo"


def main_needs(
    model: LanguageModel, losses: Iterable[AuxiliaryLoss]
) -> tuple[tuple[int, ...], int | None]:
    """Return what the main pass has to keep for several auxiliary losses.

    Raises:
        UserError: it would have to be cut at two blocks.
    """
    needs = [(loss, *loss.main_needs(model)) for loss in losses]
    cuts = {cut for _, _, cut in needs if cut is not None}
    if len(cuts) > 1:
        reaches = [f"{x.node}.reach={x.reach}" for x, _, cut in needs if cut is not None]
        raise UserError(
            f"{'; '.join(reaches)}: the main pass can be cut at one block only; make them equal, or one of "
            "them null"
        )
    taps = {tap for _, mine, _ in needs for tap in mine}
    return tuple(sorted(taps)), next(iter(cuts), None)
