"""Distances of a prediction from the token that its target stands for: its row of the table, or by the head.

A target latent at position n stands for the token after n. So these need one latent for each position, as
`SamePosition`, `Offsets` and the rollouts give it; under a placebo, target and token are of another row.
Source: LSE-MTP (2604.06155), semantic anchoring and multi-token cross entropy.
"""

from __future__ import annotations

from torch import Tensor, nn

from jepa_lm.objective.chunked_logits import Aims, over_chunks
from jepa_lm.objective.distances import MSE, Comparison, total_weight
from jepa_lm.objective.head_kl import row_weights
from jepa_lm.objective.token_losses import LaterToken
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import checked


class TokenRow(MSE):
    """Squared error of a prediction from the token's row of the model's table, which is not trained by it."""

    needs_equal_widths = False

    def forward(self, prediction: Tensor, target: Tensor, comparison: Comparison) -> Tensor:
        """[B, N, D]; the target latent itself is not read -> scalar."""
        row = comparison.model.embedding(_tokens(comparison, self)).detach()
        return super().forward(prediction, row.to(prediction.dtype), comparison)


class TokenCrossEntropy(nn.Module):
    """Cross entropy of the token under the law that the model's head reads from a prediction.

    Tokens that do not count as answers are left out.

    Args:
        train_head: also train the head; if false the loss trains what the prediction was made from alone.
    """

    fragile_at_zero = False
    needs_equal_widths = False

    @checked
    def __init__(self, *, train_head: bool = True) -> None:
        super().__init__()
        self.train_head = train_head

    def forward(self, prediction: Tensor, target: Tensor, comparison: Comparison) -> Tensor:
        """[B, N, D]; the target latent itself is not read -> scalar, in nats per token."""
        tokens = _tokens(comparison, self)
        weights = row_weights(prediction, comparison)
        aims = Aims((tokens.reshape(-1, 1), weights.reshape(-1, 1)))
        readout = comparison.model.readout(prediction, frozen=not self.train_head)
        mean, _ = over_chunks(readout, LaterToken(), weights.new_ones(1), aims)
        return weights.numel() * mean / total_weight(weights, comparison.step_context)


def _tokens(comparison: Comparison, distance: nn.Module) -> Tensor:
    if comparison.tokens is None:
        raise UserError(
            f"jepa.distance: {type(distance).__name__} needs a target at each position, whose next token is "
            "known; remove the pooling, and align with SamePosition, Offsets, Rollout or TokenRollout"
        )
    return comparison.tokens
