"""The published systems' storage, each against its formula in numpy, through the packed file."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch

from jepa_lm.artifact.loading import load_artifact
from jepa_lm.model.checkpoint import inference_model, read_checkpoint
from jepa_lm.quantization.formats import Float8, Integer, unpack_parts
from jepa_lm.quantization.qat import FakeQuantizedWeights, QATSchedule
from jepa_lm.run import export
from jepa_lm.training.resume import compare, facts_of_checkpoint
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.errors import UserError

FIVE = [0.999, 0.9995, 0.9999, 0.99999, 1.0]
HIGH = 0.9999984


def rows_of_many_sizes(columns: int = 300) -> torch.Tensor:
    """Return rows whose largest values lie on both sides of 1, one of them with outliers."""
    rng = torch.Generator().manual_seed(5)
    weight = torch.randn(24, columns, generator=rng) * torch.logspace(-3, 1, 24)[:, None]
    weight[7, :2] *= 30
    return weight


def bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).float().bfloat16().double().numpy()


def float16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float64)


def published_integers(weight, *, bits, quantiles, floor, as_stored) -> np.ndarray:
    """One quantile for the tensor, by mean squared error; a row's scale is at least `floor` / m."""
    w, m = weight.double().numpy(), 2 ** (bits - 1) - 1
    best, least = None, np.inf
    for quantile in quantiles:
        clip = np.quantile(np.abs(w), quantile, axis=1, keepdims=True)
        scale = as_stored(np.maximum(clip / m, floor / m))
        stored = np.clip(np.rint(w / scale), -m, m) * scale
        if (error := np.mean((stored - w) ** 2)) < least:
            best, least = stored, error
    return best


def published_float8(weight) -> np.ndarray:
    """The nearest k 2^(e-3), 8 <= k < 16, and below 2^-6 the nearest multiple of 2^-9."""
    w = weight.double().numpy()
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(w), 1e-300))), -6)
    step = 2.0 ** (exponent - 3)
    return np.rint(w / step) * step


def integer(**settings) -> Integer:
    return Integer(**(dict(bits=6, group=None, clip=1.0, scale_dtype="float16") | settings))


def back(format_, weight) -> torch.Tensor:
    return unpack_parts(format_.spec(), format_.pack(weight), weight.shape)


@pytest.mark.parametrize(
    ("bits", "clip", "one_clip"),
    [(6, FIVE, True), (6, HIGH, False), (8, HIGH, False), (6, 1.0, False)],
)
def test_integers_with_a_floor_against_the_formula(bits, clip, one_clip):
    weight = rows_of_many_sizes()
    format_ = integer(bits=bits, clip=clip, min_clip=1.0, one_clip=one_clip)
    quantiles = clip if isinstance(clip, list) else [clip]
    expected = published_integers(
        weight, bits=bits, quantiles=quantiles, floor=1.0, as_stored=float16
    )
    np.testing.assert_allclose(back(format_, weight), expected, rtol=1e-6, atol=1e-9)
    assert torch.equal(format_.fake_quantize(weight), back(format_, weight))


def test_the_planted_bug_no_floor():
    """Planted bug: without the lower limit on scales, only the rows below it differ."""
    weight = rows_of_many_sizes()
    below = weight.abs().amax(1) < 1
    assert 0 < below.sum() < len(weight)
    floored = back(integer(min_clip=1.0), weight)
    differs = (back(integer(), weight) != floored).any(1)
    assert torch.equal(differs, below)


def test_a_floor_is_the_share_of_the_clip_for_any_bits_and_group():
    weight = 0.01 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    for bits in (4, 6, 8):
        scale = integer(bits=bits, group=16, min_clip=1.0).pack(weight)["scale"]
        assert (scale == torch.tensor(1 / (2 ** (bits - 1) - 1)).half()).all()


def test_one_quantile_of_a_tensor_is_not_the_best_of_each_row():
    weight = rows_of_many_sizes(3000)
    each, one = integer(bits=4, clip=FIVE), integer(bits=4, clip=FIVE, one_clip=True)
    error = {kind: (back(kind, weight) - weight).square().sum(1) for kind in (each, one)}
    assert (error[each] <= error[one]).all()
    assert (error[each] < error[one]).any()
    assert not one.rows_are_alone
    assert each.rows_are_alone


def test_a_tensor_whose_rows_depend_on_each_other_is_snapped_alone():
    """On a GPU matrices of one width are snapped together; such a tensor must not be."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(40, 8, bias=False) for name in "ab"})
    for clip, calls in ((FIVE, 2), (1.0, 1)):
        kind = integer(clip=clip, one_clip=True)
        stored = FakeQuantizedWeights(model, dict.fromkeys(("a.weight", "b.weight"), kind))
        assert len(stored._groups) == calls


def test_float8_without_a_scale_against_the_formula():
    weight = rows_of_many_sizes()
    kind = Float8(scale_dtype=None)
    np.testing.assert_array_equal(back(kind, weight).double().numpy(), published_float8(weight))
    assert torch.equal(kind.fake_quantize(weight), back(kind, weight))
    assert kind.pack(weight).keys() == {""}


@pytest.mark.parametrize("value", [449.0, float("nan"), float("-inf")])
def test_float8_without_a_scale_refuses_what_it_cannot_hold(value):
    with pytest.raises(UserError, match="NaN, infinite or beyond 448; scale_dtype=bfloat16 gives"):
        Float8(scale_dtype=None).pack(torch.tensor([[1.0, value]]))


def test_int4_has_float32_scales_while_training_and_bfloat16_in_the_file(compose):
    """On the preset's own policy: the weights of a step, and those of the file."""
    node = resolve(compose("train", "experiment=pr903_lewm_bpe"))["quantization"]
    node["rules"]["tables"]["match"] = ["embedding"]
    policy = build("quantization", node)
    model = torch.nn.ModuleDict({"m": torch.nn.Linear(300, 24), "e": torch.nn.Embedding(24, 300)})
    weight = rows_of_many_sizes()
    for part in model.values():
        part.weight.data = weight.clone()
    formats = policy.assign(model)
    settings = {"bits": 4, "quantiles": [1.0], "floor": 0.0}
    exact = published_integers(weight, **settings, as_stored=lambda s: s.astype(np.float32))
    rounded = published_integers(weight, **settings, as_stored=bfloat16)
    with FakeQuantizedWeights(model, policy.training.formats(formats)).swapped():
        np.testing.assert_allclose(model["m"].weight.detach(), exact, rtol=1e-6)
        np.testing.assert_array_equal(model["e"].weight.detach(), published_float8(weight))
    np.testing.assert_allclose(back(formats["m.weight"], weight), rounded, rtol=1e-6)
    assert not np.allclose(exact, rounded, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: integer(min_clip=0.0),
            r"min_clip=0\.0: expected a number above 0 or null",
        ),
        (lambda: integer(min_clip=float("inf")), "min_clip=inf"),
        (
            lambda: integer(scale_dtype="float8"),
            "scale_dtype=float8: expected one of float16, bfloat16, float32",
        ),
        (
            lambda: QATSchedule(start=0.0, lr_below=None, clip=None, scale_dtype="int8"),
            "scale_dtype=int8: expected one of float16",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


QUICK = ("export.codecs=[zlib]", "export.protocols=[]")
GAINS = re.compile(r".*\.(attn_scale|mlp_scale|resid_mix|q_gain|skip_weights)")
BLOCKS = re.compile(r".*\.(attention|mlp)\..*")
TABLES = re.compile(r".*table\.weight")
LARGE = (
    "quantization.rules.weights.min_values=1000"  # as 65,537 would take nothing of a small model
)
POLICIES = {
    "int6_large": LARGE,
    "int6_quantile": LARGE,
    "int8_large": LARGE,
    "mixed_int6_int8": "quantization.rules.large.min_values=1000",
    "int4_fp8": "quantization.rules.weights.min_values=1000",
}


def published(policy: str, name: str, weight: torch.Tensor) -> np.ndarray:
    """Return the stored values of a tensor of a small transformer, as the submission describes them."""
    large, table = weight.ndim == 2 and weight.numel() >= 1000, TABLES.fullmatch(name)
    if policy == "int4_fp8":
        if large and not table and not GAINS.fullmatch(name):
            four = {"bits": 4, "quantiles": [1.0], "floor": 0.0}
            return published_integers(weight, **four, as_stored=bfloat16)
        return published_float8(weight) if weight.ndim == 2 else bfloat16(weight.numpy())
    if large:
        bits, quantiles = {
            "int6_large": (6, FIVE),
            "int6_quantile": (6, [HIGH]),
            "int8_large": (8, [HIGH]),
            "mixed_int6_int8": (6, [1.0]) if BLOCKS.fullmatch(name) else (8, [HIGH]),
        }[policy]
        return published_integers(
            weight, bits=bits, quantiles=quantiles, floor=1.0, as_stored=float16
        )
    exact = policy in ("int6_quantile", "int8_large") and GAINS.fullmatch(name)
    return weight.numpy() if exact else float16(weight.numpy())


@pytest.mark.usefixtures("answers_here")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_file_holds_what_its_system_publishes(compose, trained, tmp_path, policy):
    of_run = (f"ckpt_path={trained.folder}", f"quantization={policy}", POLICIES[policy])
    export(compose("export", *of_run, *QUICK))
    found = load_artifact(tmp_path / "run" / "artifact.zlib").model.state_dict()
    before = inference_model(read_checkpoint(trained.checkpoint)).state_dict()
    assert found.keys() == before.keys()
    for name, weight in before.items():
        expected = published(policy, name, weight)
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_run_on_stored_weights_goes_on_from_before_these_settings(trained):
    """An earlier version's config lacks these settings, which is the same as switching them off."""
    now = read_checkpoint(trained.checkpoint)
    now["callbacks"]["QuantizationAwareTraining"] = {"first_step": 3}
    before = copy.deepcopy(now)
    node = before["hyper_parameters"]["config"]["quantization"]
    del node["training"]["scale_dtype"]
    for key in ("min_clip", "one_clip"):
        del node["rules"]["weights"]["format"][key]
    compare(facts_of_checkpoint(before), facts_of_checkpoint(now), "ckpt_path=x")
    now["hyper_parameters"]["config"]["quantization"]["rules"]["weights"]["format"]["min_clip"] = (
        1.0
    )
    with pytest.raises(UserError, match=r"format\.min_clip \(None, now 1\.0\)"):
        compare(facts_of_checkpoint(before), facts_of_checkpoint(now), "ckpt_path=x")
