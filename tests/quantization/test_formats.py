"""Number formats and the policy that assigns them."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.errors import UserError
from jepa_lm.quantization.formats import UNPACKERS, Float16, Float32, IntPerRow
from jepa_lm.quantization.policy import Policy


def test_int8_error_is_at_most_half_a_step():
    torch.manual_seed(0)
    weight = torch.randn(50, 200) * torch.logspace(-6, 2, 50)[:, None]
    parts = IntPerRow(bits=8, clip_quantile=1.0).pack(weight)
    assert parts[""].dtype == torch.int8
    assert parts["scale"].dtype == torch.float16
    step = parts["scale"].float()[:, None]
    error = (IntPerRow.unpack(parts) - weight).abs()
    # the rounded scale may leave the largest value a little outside
    assert (error <= 0.5 * step * 1.1).all()


def test_clipping_takes_outliers_at_the_quantile():
    weight = torch.linspace(-1, 1, 2001).repeat(2, 1)
    weight[0, 0] = 100.0
    unpacked = IntPerRow.unpack(IntPerRow(bits=8, clip_quantile=0.99).pack(weight))
    assert unpacked[0, 0] == pytest.approx(0.99, abs=0.02)
    assert (unpacked[0, 200:1800] - weight[0, 200:1800]).abs().max() < 0.005
    whole = IntPerRow.unpack(IntPerRow(bits=8, clip_quantile=1.0).pack(weight))
    assert whole[0, 0] == pytest.approx(100.0, rel=0.01)


def test_rows_of_zeros_and_a_single_column():
    format_ = IntPerRow(bits=8, clip_quantile=0.9999984)
    assert not IntPerRow.unpack(format_.pack(torch.zeros(3, 5))).any()
    one = torch.tensor([[0.5], [-2.0]])
    torch.testing.assert_close(IntPerRow.unpack(format_.pack(one)), one, rtol=1e-3, atol=0)


@pytest.mark.parametrize("format_", [Float32(), Float16(), IntPerRow(bits=8, clip_quantile=1.0)])
def test_the_recorded_name_finds_the_unpacker(format_):
    weight = torch.randn(4, 6)
    got = UNPACKERS[format_.name].unpack(format_.pack(weight))
    torch.testing.assert_close(got, weight, rtol=0.02, atol=0.02)


def test_what_a_format_cannot_hold_is_refused():
    with pytest.raises(UserError, match="65504"):
        Float16().pack(torch.tensor([1e6]))
    with pytest.raises(UserError, match="row scale"):
        IntPerRow(bits=8, clip_quantile=1.0).pack(torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(UserError, match="bits=3"):
        IntPerRow(bits=3, clip_quantile=1.0)
    with pytest.raises(UserError, match="clip_quantile=0"):
        IntPerRow(bits=8, clip_quantile=0)


def model() -> torch.nn.Module:
    return torch.nn.ModuleDict(
        {
            "big": torch.nn.Linear(40, 40),
            "small": torch.nn.Linear(3, 3),
            "e": torch.nn.Embedding(50, 40),
        }
    )


def rules(**entries):
    return Policy(
        rules={
            "ints": {
                "match": ["matrix", "embedding"],
                "min_values": 1000,
                "format": IntPerRow(bits=8, clip_quantile=1.0),
            },
            "rest": {"match": ["*"], "min_values": 0, "format": Float16()},
        }
        | entries
    )


def test_policy_goes_by_role_and_size():
    assert {n: f.name for n, f in rules().assign(model()).items()} == {
        "big.weight": "int8",
        "big.bias": "float16",
        "small.weight": "float16",
        "small.bias": "float16",
        "e.weight": "int8",
    }


def test_a_pattern_that_fits_nothing_is_an_error():
    """Trap 22: a renamed module must not fall silently into another class."""
    extra = {"match": ["attention.*"], "min_values": 0, "format": Float32()}
    with pytest.raises(UserError, match=r"quantization\.rules\.extra\.match=attention\.\*"):
        rules(extra=extra).assign(model())


def test_a_tensor_without_rule_is_an_error():
    with pytest.raises(UserError, match=r"no rule takes small\.weight"):
        Policy(rules={"ints": {"match": ["*"], "min_values": 10, "format": Float16()}}).assign(
            model()
        )
