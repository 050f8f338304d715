"""Heads compared part by part, and soft caps computed in place."""

from __future__ import annotations

import math

import pytest
import torch

from jepa_lm.model.heads import PolynomialSoftcap, TanhSoftcap, TiedHead, UntiedHead


@pytest.mark.parametrize("kind", [TanhSoftcap, PolynomialSoftcap])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cap_in_few_passes_is_the_cap_and_its_derivative(kind, dtype):
    """Also far beyond the cap, where the polynomial is flat, and around zero."""
    cap = kind(cap=3.0)
    z = torch.cat((torch.linspace(-30, 30, 1001), torch.linspace(-1e-3, 1e-3, 11))).requires_grad_()
    wanted = cap(z)
    (slope,) = torch.autograd.grad(wanted.sum(), z)
    value = z.detach().to(dtype, copy=True)
    derivative = torch.full_like(value, math.nan)
    cap.cap_(value, derivative)
    torch.testing.assert_close(value.float(), wanted.detach(), rtol=0, atol=2e-6)
    torch.testing.assert_close(derivative.float(), slope, rtol=0, atol=2e-6)
    capped, derivative = cap.with_slope(z.detach().to(dtype))
    torch.testing.assert_close(capped.float(), wanted.detach(), rtol=0, atol=2e-6)
    torch.testing.assert_close(derivative.float(), slope, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["untied", "tied", "corrected", "gelu"])
def test_the_parts_of_a_head_make_its_logits(mode):
    torch.manual_seed(0)
    if mode == "untied":
        head, table = UntiedHead(dim=8, vocab_size=11, zero_init=False), torch.zeros(11, 5)
    else:
        head = TiedHead(
            dim=8, vocab_size=11, factor_dim=5, correction=mode == "corrected", gelu=mode == "gelu"
        )
        table = torch.randn(11, 5)
    hidden = torch.randn(2, 3, 8)
    logits = head.features(hidden) @ head.weight(table).T
    torch.testing.assert_close(head(hidden, table), logits)


def test_logits_of_an_untied_head_pass_through_its_layer():
    """GPTQ hooks linear layers to record the inputs of their matrices."""
    head, heard = UntiedHead(dim=8, vocab_size=11, zero_init=False), []
    head.out.register_forward_pre_hook(lambda layer, arguments: heard.append(arguments[0].shape))
    head(torch.randn(2, 3, 8), torch.zeros(11, 8))
    assert heard == [(2, 3, 8)]
