"""Number formats and the policy that assigns them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa_lm.quantization.formats import Cast, Float8, Integer, _clips, entropy, unpack_parts
from jepa_lm.quantization.policy import Policy
from jepa_lm.utils.errors import UserError


def integer(**settings) -> Integer:
    return Integer(**(dict(bits=8, group=None, clip=1.0, scale_dtype="float16") | settings))


def back(format_, weight: torch.Tensor) -> torch.Tensor:
    """Return the weight after a round trip through the stored parts."""
    return unpack_parts(format_.spec(), format_.pack(weight), weight.shape)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16"])
def test_the_error_is_at_most_half_a_step(bits, scale_dtype):
    torch.manual_seed(0)
    weight = torch.randn(50, 200) * torch.logspace(-3, 2, 50)[:, None]
    format_ = integer(bits=bits, scale_dtype=scale_dtype)
    step = format_.pack(weight)["scale"].float()
    # The rounded scale may leave the largest value slightly outside the range.
    outside = 2**-8 if scale_dtype == "bfloat16" else 2**-11
    assert ((back(format_, weight) - weight).abs() <= step * (0.5 + format_.limit * outside)).all()


def test_integers_against_a_loop_over_rows_and_groups():
    """An independent computation in numpy, including a short last group."""
    weight = torch.randn(6, 21, generator=torch.Generator().manual_seed(0))
    wanted = np.zeros((6, 21), dtype=np.float32)
    for row in range(6):
        for start in range(0, 21, 8):
            part = weight[row, start : start + 8].numpy()
            scale = np.float32(np.float16(np.abs(part).max() / 7))
            wanted[row, start : start + 8] = np.clip(np.rint(part / scale), -7, 7) * scale
    np.testing.assert_allclose(back(integer(bits=4, group=8), weight), wanted, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (7,), (1,), (5, 1), (4, 9), (6, 1, 4), (3, 2, 2, 2)])
@pytest.mark.parametrize(
    "format_",
    [
        Cast(dtype="float32"),
        Cast(dtype="float16"),
        Cast(dtype="bfloat16"),
        Float8(scale_dtype="bfloat16"),
        integer(),
        integer(bits=6, group=4, scale_dtype="bfloat16"),
        integer(bits=4, group=3),
        integer(bits=5, clip=[0.99, 1.0]),
    ],
    ids=lambda f: f.name,
)
def test_every_shape_comes_back(shape, format_):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    got = back(format_, weight)
    assert got.shape == weight.shape
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, weight, rtol=0.1, atol=0.35)
    torch.testing.assert_close(format_.fake_quantize(weight), got, rtol=0, atol=0)


def test_more_bits_and_smaller_groups_are_closer():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    weight[:, 0] *= 10
    error = {
        (bits, group): (back(integer(bits=bits, group=group), weight) - weight).norm().item()
        for bits in (4, 5, 6, 8)
        for group in (None, 32)
    }
    assert error[4, None] > 1.8 * error[5, None] > 3.5 * error[6, None] > 13 * error[8, None]
    assert error[4, 32] < 0.5 * error[4, None]


def test_clipping_takes_outliers_at_the_quantile():
    weight = torch.linspace(-1, 1, 2001).repeat(2, 1)
    weight[0, 0] = 100.0
    clipped = back(integer(clip=0.99), weight)
    assert clipped[0, 0] == pytest.approx(0.99, abs=0.02)
    assert (clipped[0, 200:1800] - weight[0, 200:1800]).abs().max() < 0.005
    assert back(integer(), weight)[0, 0] == pytest.approx(100.0, rel=0.01)


def test_of_several_quantiles_each_row_takes_its_best():
    torch.manual_seed(0)
    weight = torch.stack((torch.randn(4000), torch.rand(4000)))  # with tails, without
    clips = [0.9, 0.99, 1.0]
    errors = torch.stack(
        [(back(integer(bits=4, clip=c), weight) - weight).square().sum(1) for c in clips]
    )
    best = (back(integer(bits=4, clip=clips), weight) - weight).square().sum(1)
    torch.testing.assert_close(best, errors.amin(0))
    assert errors[:, 0].argmin() != errors[:, 1].argmin()


def test_a_quantile_of_a_large_tensor():
    """torch.quantile alone refuses more than 16 million values."""
    weight = torch.zeros(17, 1_000_001)
    weight[:, 0] = 1.0
    assert integer(clip=0.5).pack(weight)["scale"].max() < 1e-4


def test_rows_of_zeros_and_a_single_column():
    assert not back(integer(clip=0.9999984), torch.zeros(3, 5)).any()
    assert not back(Float8(scale_dtype="bfloat16"), torch.zeros(3, 5)).any()
    one = torch.tensor([[0.5], [-2.0]])
    torch.testing.assert_close(back(integer(), one), one, rtol=1e-3, atol=0)


def test_float8_keeps_four_significant_bits():
    weight = torch.randn(30, 100, generator=torch.Generator().manual_seed(3))
    relative = (back(Float8(scale_dtype="bfloat16"), weight) / weight - 1).abs()
    normal = weight.abs() > weight.abs().amax(1, keepdim=True) * 2**-6 / 448
    assert relative[normal].max() < 2**-4 + 2**-8


def test_integers_that_straddle_bytes_are_packed_only_where_nothing_is_lost():
    """Compressors code bytes: a dense stream of int6 hides the patterns that int8 shows."""
    bell = torch.randn(200, 500, generator=torch.Generator().manual_seed(4))
    flat = torch.rand(200, 500, generator=torch.Generator().manual_seed(4)) * 2 - 1
    assert integer(bits=6).pack(bell)[""].dtype == torch.int8
    assert integer(bits=4).pack(bell)[""].dtype == torch.uint8
    assert integer(bits=4).pack(bell)[""].numel() == bell.numel() // 2
    assert integer(bits=8).pack(bell)[""].dtype == torch.int8
    assert integer(bits=6, group=1).pack(flat.sign())[""].dtype == torch.int8  # two symbols


def test_entropy_counts_symbols():
    assert entropy(np.zeros(100, dtype=np.uint8)) == 0
    assert entropy(np.arange(256, dtype=np.uint8)) == pytest.approx(8)
    assert entropy(np.array([1, 1, 1, 2], dtype=np.uint8)) == pytest.approx(0.8113, abs=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cast(dtype="float16").pack(torch.tensor([1e6])), "65504"),
        (lambda: integer().pack(torch.tensor([[float("nan"), 1.0]])), "float16 scale"),
        (lambda: integer(bits=1), "bits=1: expected a whole number from 2 to 8"),
        (lambda: integer(bits=9), "bits=9: expected a whole number from 2 to 8"),
        (lambda: integer(clip=0), "clip=0"),
        (lambda: integer(clip=[]), r"clip=\[\]"),
        (lambda: integer(group=0), "group=0"),
        (lambda: integer(scale_dtype="int8"), "scale_dtype=int8"),
        (lambda: Cast(dtype="int8"), "dtype=int8: expected one of"),
    ],
)
def test_what_a_format_cannot_be_or_hold_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 1},
        {"bits": 9},
        {"bits": 5},
        {"group": -3},
        {"group": 5},
        {"kind": "pickle"},
        {"scale_dtype": "int8"},
    ],
)
def test_a_spec_that_is_not_that_of_its_parts_is_refused(change):
    weight = torch.randn(6, 16)
    format_ = integer(bits=4, group=8)
    with pytest.raises((ValueError, KeyError)):
        unpack_parts(format_.spec() | change, format_.pack(weight), weight.shape)
    with pytest.raises(ValueError, match="expected"):
        unpack_parts(format_.spec(), format_.pack(weight), (6, 17))


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
                "format": integer(bits=8),
            },
            "rest": {"match": ["*"], "min_values": 0, "format": Cast(dtype="float16")},
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
    """A renamed module must not silently fall into another class."""
    extra = {"match": ["attention.*"], "min_values": 0, "format": Cast(dtype="float32")}
    with pytest.raises(UserError, match=r"quantization\.rules\.extra\.match=attention\.\*"):
        rules(extra=extra).assign(model())


def test_a_tensor_without_rule_is_an_error():
    with pytest.raises(UserError, match=r"no rule matches small\.weight"):
        Policy(
            rules={"ints": {"match": ["*"], "min_values": 10, "format": Cast(dtype="float16")}}
        ).assign(model())


@pytest.mark.parametrize("columns", [1, 2, 7, 192, 1536])
def test_quantiles_are_those_of_torch(columns):
    values = torch.randn(5, 3, columns)
    asked = [0.0, 0.5, 0.98, 0.999, 0.9999984, 1.0]
    for q, found in zip(asked, _clips(values, asked), strict=True):
        assert found.shape == (5, 3, 1)
        expected = torch.quantile(values.abs(), q, dim=-1, keepdim=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(_clips(values, [1.0])[0], values.abs().amax(-1, keepdim=True))


def test_a_scale_that_is_no_number_is_refused_in_a_file_not_in_a_step():
    weight = torch.full((2, 4), float("nan"))
    for format_ in (integer(bits=4, group=None), Float8(scale_dtype="float16")):
        with pytest.raises(UserError, match="NaN, infinite or too large"):
            format_.pack(weight)
        assert (
            format_.fake_quantize(weight).isnan().all()
        )  # the loss will be NaN as well: training stops


def test_a_group_wider_than_a_row_takes_no_memory_on_a_files_word(monkeypatch):
    """A file may name any number of columns; a row has no more than it has."""
    kind, weight = Integer(bits=4, group=None, clip=1.0, scale_dtype="bfloat16"), torch.randn(6, 8)
    repeated = []
    spread = torch.Tensor.repeat_interleave
    monkeypatch.setattr(
        torch.Tensor,
        "repeat_interleave",
        lambda x, times, **more: repeated.append(times) or spread(x, times, **more),
    )
    spec = {**kind.spec(), "group": 2_000_000_000}
    found = unpack_parts(spec, kind.pack(weight), weight.shape)
    assert torch.equal(found, kind.fake_quantize(weight))
    assert repeated == [8]
