"""VICReg's terms, the hinges and the spectral floor, against NumPy and by their invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_lm.objective.regularizers import Covariance, SpectralFloor, StdHinge, Variance
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import at

VARIANCE = Variance(tensor="prediction", weight=1, gamma=1.0, eps=1e-4)
COVARIANCE = Covariance(tensor="prediction", weight=1)
HINGE = StdHinge(tensor="prediction", weight=1, gamma=0.5)
FLOOR = SpectralFloor(tensor="context", weight=1, floor=0.3, relative=True, differences=True)


def sample(seed: int = 0, scale: float = 0.4) -> torch.Tensor:
    return scale * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(seed))


def test_each_is_its_formula():
    x = sample()
    rows = x.reshape(-1, 5).double().numpy()
    std = np.sqrt(rows.var(0, ddof=1) + 1e-4)
    assert VARIANCE(x, at()).item() == pytest.approx(np.maximum(0, 1 - std).mean(), rel=1e-5)
    cov = np.cov(rows.T)
    off = (cov**2).sum() - (np.diag(cov) ** 2).sum()
    assert COVARIANCE(x, at()).item() == pytest.approx(off / 5, rel=1e-4)
    assert HINGE(x, at()).item() == pytest.approx(np.maximum(0, 0.5 - rows.std(0)).mean(), rel=1e-5)
    steps = np.diff(x.double().numpy(), axis=1).reshape(-1, 5)
    eigenvalues = np.linalg.eigvalsh(np.cov(steps.T))
    want = np.maximum(0, 0.3 - eigenvalues / eigenvalues.mean()).mean()
    assert FLOOR(x, at()).item() == pytest.approx(want, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-5, 5))
def test_vicreg_notices_neither_order_nor_shift_nor_sign(seed, shift):
    x = sample(seed)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    shuffled = x.reshape(24, 5)[order].reshape(4, 6, 5)
    flipped = x * torch.tensor([1.0, -1, 1, -1, 1])
    for term in (VARIANCE, COVARIANCE, HINGE):
        want = term(x, at())
        for other in (shuffled, x + shift, flipped):
            torch.testing.assert_close(term(other, at()), want, rtol=2e-3, atol=1e-5)


def test_covariance_is_zero_on_independent_dims_and_grows_with_redundancy():
    x = torch.randn(1, 20_000, 4, generator=torch.Generator().manual_seed(0))
    assert COVARIANCE(x, at()) < 1e-3
    copied = torch.cat((x[..., :2], x[..., :2]), -1)
    assert COVARIANCE(copied, at()) > 0.9


@pytest.mark.parametrize("term", [VARIANCE, COVARIANCE, HINGE])
def test_gradients_are_right_in_float64(term):
    x = sample().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: term(v, at()), x)


@pytest.mark.parametrize("term", [VARIANCE, COVARIANCE, HINGE])
def test_gradients_are_finite_on_collapsed_rows(term):
    x = torch.zeros(2, 3, 4, requires_grad=True)
    term(x, at()).backward()
    assert x.grad.isfinite().all()


def test_the_square_root_of_the_variance_would_have_no_gradient_there():
    x = torch.zeros(6, 4, requires_grad=True)
    (0.5 - x.var(0, unbiased=False).sqrt()).clamp(min=0).mean().backward()
    assert x.grad.isnan().any()


# ---- a hinge that can never be met


@pytest.mark.parametrize(
    ("overrides", "limit"),
    [
        (("objective=recipes/pr1006", "jepa.regularizers.variance.gamma=1.0"), "0.0625"),
        (
            (
                "objective=patch",
                "jepa.regularizers.std.tensor=normed_prediction",
                "jepa.regularizers.std.gamma=0.5",
            ),
            "0.125",
        ),
        (
            (
                "objective=vicreg",
                "jepa.regularizers.target_variance.weight=1",
                "jepa.regularizers.target_variance.gamma=1.5",
            ),
            "at most 1",
        ),
    ],
)
def test_a_hinge_that_can_never_be_met_is_refused(build, overrides, limit):
    with pytest.raises(UserError, match=r"gamma=.*never be reached") as error:
        build(*overrides)
    assert limit in str(error.value)


def test_reachable_hinges_are_composed(build):
    build("objective=recipes/pr1006", "jepa.regularizers.variance.gamma=0.0625")
    build("objective=vicreg", "jepa.regularizers.variance.gamma=3.0")  # predictions are not bounded
