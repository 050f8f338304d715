"""Losses of logits on tokens against independent formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepa_lm.model.heads import Readout, TanhSoftcap
from jepa_lm.objective.chunked_logits import Aims, over_chunks
from jepa_lm.objective.token_losses import LaterToken, TokenBag, TokenOrder

V = 7


def scored(token, logits, targets, offsets=(0,), weights=None):
    """Return loss and gradient that a token loss gives to logits [B, T, V], through a head of ones."""
    z = logits.clone().requires_grad_()
    readout = Readout(z.flatten(0, 1), torch.eye(z.shape[-1]), None, None)
    aims = token.aims(targets, weights, offsets, z.shape[-1])
    loss, _ = over_chunks(readout, token, torch.ones(len(offsets)), aims, chunk_rows=5)
    loss.backward()
    return loss.detach(), z.grad


def agrees(token, reference, targets, **more):
    logits = torch.randn(*targets.shape, V, generator=torch.Generator().manual_seed(1))
    z = logits.clone().requires_grad_()
    want = reference(z)
    want.backward()
    loss, grad = scored(token, logits, targets, **more)
    torch.testing.assert_close(loss, want.detach())
    torch.testing.assert_close(grad, z.grad)


def some_targets(rows=3, length=9):
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(0))


def test_later_tokens_are_cross_entropy_of_shifted_logits():
    targets = some_targets()

    def reference(z):
        far = F.cross_entropy(z[:, :-2].flatten(0, 1), targets[:, 2:].flatten())
        return far + F.cross_entropy(z.flatten(0, 1), targets.flatten())

    agrees(LaterToken(), reference, targets, offsets=(2, 0))


def test_weights_of_targets_are_those_of_the_cross_entropy():
    targets = some_targets()
    weights = (targets > 2) * 2.5

    def reference(z):
        nll = F.cross_entropy(z[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), reduction="none")
        return (nll * weights[:, 1:].flatten()).sum() / targets.numel()

    agrees(LaterToken(), reference, targets, offsets=(1,), weights=weights)


def order_by_hand(targets, window):
    """Return the scores of TOP [B, T, V] by looking for the next occurrence of each token."""
    rows, length = targets.shape
    scores = torch.full((rows, length, V), float("-inf"))
    for b in range(rows):
        for t in range(length):
            for v in range(V):
                ahead = [j + 1 for j in range(length - t) if targets[b, t + j] == v]
                if ahead and ahead[0] < window:
                    scores[b, t, v] = window - ahead[0]
    return scores


@pytest.mark.parametrize("window", [2, 5, 9])
def test_order_is_cross_entropy_to_a_softmax_of_nearness(window):
    targets = some_targets()
    law = order_by_hand(targets, window).softmax(-1)
    agrees(
        TokenOrder(window=window),
        lambda z: -(law * z.log_softmax(-1)).sum(-1).mean(),
        targets,
    )


def test_order_of_five_tokens():
    """After a, the text goes on b c b d: with W = 4, b is nearest, then c; d is too far."""
    aims = TokenOrder(window=4).aims(torch.tensor([[1, 2, 1, 3]]), None, (0,), V)
    places, weights = aims.rows
    z = torch.zeros(1, V)
    _, grad = TokenOrder(window=4).score(z, torch.ones(1), places[:1], weights[:1], *aims.whole)
    law = 1 / V - grad[0]
    want = torch.zeros(V)
    want[[1, 2]] = torch.tensor([3.0, 2.0]).softmax(0)
    torch.testing.assert_close(law, want)


def test_a_window_of_nothing_known_counts_as_zero():
    targets = some_targets(rows=1)
    loss, grad = scored(
        TokenOrder(window=4), torch.randn(1, 9, V), targets, weights=torch.zeros(1, 9)
    )
    assert loss == 0
    assert not grad.any()


@pytest.mark.parametrize("window", [2, 5, 9])
def test_a_bag_is_binary_cross_entropy_over_the_vocabulary(window):
    targets = some_targets()
    whole = targets.shape[1] - window + 1
    hot = torch.zeros(3, whole, V)
    for j in range(1, window):
        hot.scatter_(2, targets[:, j : j + whole, None], 1.0)
    agrees(
        TokenBag(window=window),
        lambda z: F.binary_cross_entropy_with_logits(z[:, :whole], hot),
        targets,
    )


def test_a_bag_counts_no_row_whose_window_reaches_into_padding():
    targets = some_targets()
    ends = torch.tensor([9, 6, 3])
    weights = (torch.arange(targets.shape[1]) < ends[:, None]).float()
    z = torch.randn(*targets.shape, V, generator=torch.Generator().manual_seed(3))
    _, grad = scored(TokenBag(window=4), z, targets, weights=weights)
    counted = grad.abs().amax(-1) > 0
    assert torch.equal(counted, torch.arange(targets.shape[1]) < ends[:, None] - 3)


def test_bias_softcap_and_table_get_the_gradients_of_autograd():
    draw = torch.Generator().manual_seed(2)
    shapes = ((12, 4), (V, 4), (V,))
    inputs = [torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes]
    targets, cap = some_targets(3, 4), TanhSoftcap(cap=2.0)
    aims = LaterToken().aims(targets, None, (1,), V)
    aims = Aims((aims.rows[0], aims.rows[1].double()))
    found = []
    for through in (True, False):
        x, table, bias = (t.clone().requires_grad_() for t in inputs)
        if through:
            loss, _ = over_chunks(
                Readout(x, table, bias, cap), LaterToken(), torch.tensor([0.5]), aims, chunk_rows=5
            )
        else:
            z = (2.0 * torch.tanh((x @ table.T + bias) / 2.0)).view(3, 4, V)
            loss = 0.5 * F.cross_entropy(z[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        loss.backward()
        found.append((loss.detach(), x.grad, table.grad, bias.grad))
    torch.testing.assert_close(found[0], found[1])
