"""The token objective: an auxiliary loss on tokens, the rival of a latent one at equal cost.

    view of the text -> encoder -> head -> logits of each offset
    loss = sum_k weight_k * schedule_k * loss of the token k places after the next one

`tokens.weight` times the schedule scales it; the task adds it to the cross entropy, beside a latent objective
or without one. Multi-token prediction, token order, future summaries and masked-input cross entropy are
choices of its four parts, so that each latent recipe can be compared with a twin that predicts tokens.
The loss is the mean over a rank's micro-batch, which DDP averages over ranks.
Legend: B batch, T positions, D model width, V vocabulary, K offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from jepa_lm.data.stream import Batch
from jepa_lm.model import Encoded, LanguageModel
from jepa_lm.model.unet import UNet
from jepa_lm.objective.auxiliary_loss import LOSS, AuxiliaryLoss
from jepa_lm.objective.chunked_logits import over_chunks
from jepa_lm.objective.passes import encode_view, limit_reach
from jepa_lm.objective.step_context import Draws, StepContext, draw_now, on_device
from jepa_lm.objective.token_heads import Read, TokenHead
from jepa_lm.objective.token_losses import TokenLoss
from jepa_lm.objective.views import RandomView, View
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.schedules.factors import Schedule
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, NotNegative, Whole, checked

if TYPE_CHECKING:
    from jepa_lm.objective.latent_prediction import LatentPrediction

CONTEXT = "context"
"""Place of the draws and of the pass of `jepa.context.view`."""
VIEW, SHARES = "tokens.view", "tokens.shares"
"""Places of its draws in a step context. The weights of the offsets are among them, because a compiled loss
would be compiled anew for each number."""


class TokenPrediction(AuxiliaryLoss):
    """Token objective, composed of a view, offsets, a head and a loss.

    Args:
        weight: factor on the whole loss. schedule: scheduled factor on it, or None.
        token: what is asked of the logits, see `jepa_lm.objective.token_losses`.
        head: makes the logits, see `jepa_lm.objective.token_heads`.
        offsets: places after the next token; 0 is the next token itself.
        weights: one per offset, used as they are; None gives each 1 / K.
        schedules: scheduled factors on these weights, one or null per offset; None schedules none.
        view: what the pass sees of the text that the loss is computed on; None reuses the main pass, and
            `context` that of `jepa.context.view`, so that both losses read one noised text in one pass.
        placebo: control in which the tokens to predict are those of another row of the batch.
        reach: the loss trains only the last n blocks of the trunk, and the head; None trains all of it.
        diagnostics_every: optimizer steps between measurements of its gradient.

    Raises:
        UserError: a value is out of range, or the parts do not fit each other.
    """

    node = "tokens"

    @checked
    def __init__(
        self,
        *,
        weight: NotNegative,
        token: TokenLoss,
        head: TokenHead,
        offsets: Sequence[Whole] = (0,),
        weights: Sequence[NotNegative] | None = None,
        schedules: Sequence[Schedule | None] | None = None,
        view: View | Literal["context"] | None = None,
        schedule: Schedule | None = None,
        placebo: bool = False,
        reach: Whole | None = None,
        diagnostics_every: Count = 100,
    ) -> None:
        super().__init__(weight=weight, schedule=schedule, placebo=placebo, reach=reach)
        self.token, self.head = token, head
        self.view, self.with_context = (None, True) if view == "context" else (view, False)
        self._shared: tuple[View, ...] = ()
        """The view of `jepa.context`, whose module the latent objective keeps."""
        self.offsets, self.diagnostics_every = list(offsets), diagnostics_every
        count = len(self.offsets)
        if not count or len(set(self.offsets)) != count:
            raise UserError(f"tokens.offsets={self.offsets}: needs different offsets, at least one")
        for key, values in (("weights", weights), ("schedules", schedules)):
            if values is not None and len(values) != count:
                raise UserError(
                    f"tokens.{key}: has {len(values)} entries for {count} offsets; give one for each"
                )
        self.offset_weights = [1 / count] * count if weights is None else list(weights)
        self.schedules = [None] * count if schedules is None else list(schedules)
        if not sum(self.offset_weights):
            raise UserError("tokens.weights: are all 0; for the control, set tokens.weight=0")
        if head.is_shared and token.needs_own_head:
            raise UserError(
                f"tokens.head: SharedHead predicts the next token, and {type(token).__name__} would have its "
                "logits mean something else; use LinearHead or ParallelBlocks"
            )
        if head.is_shared and view is None and 0 in self.offsets:
            raise UserError(
                "tokens.offsets: 0 is the cross entropy itself without a view; raise ce_weight, choose "
                "offsets from 1 on, or set tokens.view"
            )

    # ---- at the start of a run

    def prepare(
        self, model: LanguageModel, seq_len: int, beside: LatentPrediction | None = None
    ) -> None:
        """Check the parts against model and data, and freeze what `reach` leaves without a gradient.

        Args:
            beside: the latent objective, whose context's pass may be read.

        Raises:
            UserError: naming the setting that does not fit.
        """
        self.check_reach(model)
        self.head.check(model, self.offsets)
        if self.with_context:
            self._share(beside)
        self.check(seq_len)
        vector = getattr(self.view, "vector", None)
        if vector is not None and len(vector) != model.dim:
            raise UserError(f"tokens.view.dim={len(vector)}: must equal model.dim={model.dim}")
        if vector is not None and self.reach is not None:
            vector.requires_grad_(False)  # lies below every block

    def _share(self, beside: LatentPrediction | None) -> None:
        """Read the pass of the latent objective's context view."""
        view = None if beside is None else beside.context.view
        if beside is None or not isinstance(view, RandomView):
            raise UserError(
                f"{VIEW}=context: jepa.context.view masks and replaces nothing in its own pass; set it to "
                "RandomReplacement"
            )
        if any(True for _ in view.parameters()):
            raise UserError(
                f"{VIEW}=context: {type(view).__name__} learns its mask vector, which one loss alone can "
                f"train; give the tokens a pass of their own, {VIEW}=${{jepa.context.view}}"
            )
        if beside.context.stop_gradient or beside.reach is not None or self.reach is not None:
            raise UserError(
                f"{VIEW}=context: the pass that both losses read trains the whole trunk; set "
                "jepa.context.stop_gradient=false, jepa.reach=null and tokens.reach=null"
            )
        view.shared, self._shared = True, (view,)

    def check(self, seq_len: int) -> None:
        """Raise UserError if sequences of this length are too short."""
        self.token.check(self.offsets, seq_len)
        if self.view is not None:
            self.view.check(seq_len, "tokens.view")
            if self.view.length(seq_len) != seq_len:
                raise UserError(
                    f"tokens.view: {type(self.view).__name__} drops positions, whose tokens could not be "
                    "predicted; choose RandomMask, SpanMask or RandomReplacement"
                )

    @property
    def _read(self) -> tuple[View | None, str]:
        """View of the pass that predicts, None for the main pass, and the place of its draws."""
        return (self._shared[0], CONTEXT) if self._shared else (self.view, VIEW)

    # ---- weights over the clock

    def shares(self, clock: ProgressClock) -> list[float]:
        """Return the current weight of each offset within the loss."""
        pairs = zip(self.offset_weights, self.schedules, strict=True)
        return [w if schedule is None else w * schedule(clock) for w, schedule in pairs]

    def active(self, clock: ProgressClock) -> bool:
        """See `AuxiliaryLoss.active`; inactive, too, while all offsets weigh 0."""
        return super().active(clock) and any(self.shares(clock))

    def weights(self, clock: ProgressClock) -> dict[str, float]:
        """See `AuxiliaryLoss.weights`."""
        return dict(zip(self.token.names(self.offsets), self.shares(clock), strict=True))

    def schedules_by_key(self) -> dict[str, Schedule | None]:
        """See `AuxiliaryLoss.schedules_by_key`."""
        of_offsets = {f"tokens.schedules[{i}]": s for i, s in enumerate(self.schedules)}
        return {**super().schedules_by_key(), **of_offsets}

    # ---- the loss

    def main_needs(self, model: LanguageModel) -> tuple[tuple[int, ...], int | None]:
        """See `AuxiliaryLoss.main_needs`: nothing for a pass of its own."""
        own = self.view is not None or self.with_context
        return ((), None) if own else super().main_needs(model)

    def keep_tables(self, backbone: UNet, seq_len: int, device: torch.device) -> None:
        """Make the tables that the head reads; its pass has the length of the main one."""
        self.head.keep_tables(seq_len, device)

    def _draws(self, inputs: Tensor, step_context: StepContext) -> dict[str, Draws]:
        places: dict[str, Draws] = {SHARES: self._weigh(step_context, inputs.device)}
        view, place = self._read
        if isinstance(view, RandomView) and place not in step_context.places:
            places[place] = view.draw(inputs.shape, step_context, place, inputs.device)
        places |= self._draw_other_rows(len(inputs), step_context, inputs.device)
        return places

    def _weigh(self, step_context: StepContext, device: torch.device) -> Draws:
        return (on_device(torch.tensor(self.shares(step_context.clock)), device),)

    def total(self, components: Mapping[str, Tensor], clock: ProgressClock) -> Tensor:
        """Return the loss before `scale`, which the components include: it is found with the weights."""
        return components[LOSS]

    def components(
        self, model: LanguageModel, batch: Batch, main: Encoded, step_context: StepContext
    ) -> dict[str, Tensor]:
        """Return the loss, the only one with a gradient, and the unweighted loss of each offset, by name."""
        inputs = batch["inputs"]
        encoded = self._encoded(model, inputs, main, step_context)
        readouts = self.head(model, Read(encoded, inputs, self.reach is None))
        drawn = step_context.at(SHARES).drawn
        (shares,) = drawn or draw_now(self._weigh, step_context, inputs.device)
        targets, weights = self._targets(batch, step_context)
        losses, parts = [], []
        together = len(readouts) == 1
        for i, readout in enumerate(readouts):
            mine = slice(None) if together else slice(i, i + 1)
            offsets = self.offsets[mine]
            aims = self.token.aims(targets, weights, offsets, model.vocab_size)
            loss, own = over_chunks(readout, self.token, shares[mine], aims)
            losses.append(loss)
            parts.append(own)
        names = self.token.names(self.offsets)
        named = zip(names, torch.cat(parts).unbind(), strict=True)
        return {LOSS: torch.stack(losses).sum(), **dict(named)}

    def _encoded(
        self, model: LanguageModel, inputs: Tensor, main: Encoded, step_context: StepContext
    ) -> Encoded:
        """Return the pass that predicts."""
        view, place = self._read
        if view is None:
            return limit_reach(model, main, (), self.reach)
        if self._shared and CONTEXT in step_context.passes:
            beside, made = step_context.passes[CONTEXT]
            if beside is main:
                return made
        return encode_view(model, view(inputs, step_context.at(place), place), (), self.reach)

    def _targets(self, batch: Batch, step_context: StepContext) -> tuple[Tensor, Tensor | None]:
        """Return the targets [B, T], and their weights as in the cross entropy."""
        targets, weights = batch["targets"], batch.get("weights")
        if self.placebo:
            order = self._other_rows(len(targets), step_context, targets.device)
            targets, weights = targets[order], None if weights is None else weights[order]
        return targets, weights
