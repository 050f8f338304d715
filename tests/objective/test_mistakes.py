"""Mistakes in an objective's settings, and losses that are NaN or infinite."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.data.token_data import TokenData
from jepa_lm.run import train
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import NOW
from tests.runs import summary

MISTAKES = [
    (("objective=vicreg", "data.seq_len=16"), "data.seq_len to 32"),
    (("objective=patch", "jepa.context.pooling.size=7"), "size=7: must divide data.seq_len=32"),
    (("objective=chunk_loss_only", "data.seq_len=20"), "must divide data.seq_len=20"),
    (
        ("objective=chunk", "data.seq_len=7", "data.batch_tokens=7"),
        "no whole chunk of model.*chunk=8 pos",
    ),
    (
        (
            "objective=chunk",
            "jepa.alignment._target_=jepa_lm.objective.alignment.Offsets",
            "+jepa.alignment.offsets=[4]",
        ),
        "only 4 latents",
    ),
    (
        ("objective=nextlat", "jepa.target.tap=0"),
        "jepa.target.tap=0: HeadKL reads latents by the head",
    ),
    (
        ("objective=hilp", "jepa.target.tap=last"),
        "jepa.target.tap=last: HeadKL .*set jepa.target.tap=final",
    ),
    (
        ("objective=lewm", "jepa/distance=law"),
        "jepa.target.project=true: HeadKL .*set jepa.target.project=false",
    ),
    (
        ("objective=lse_mtp", "jepa.predictor=null", "jepa.context.tap=0"),
        "jepa.context.tap=0: TokenCrossEntropy .*or add a predictor",
    ),
    (
        (
            "objective=lewm",
            "jepa.distance={_target_: jepa_lm.objective.distances.SoftCrossEntropy}",
            "~jepa.distance.reduction",
        ),
        "SoftCrossEntropy takes laws, and SamePass gives none; BatchTarget",
    ),
    (
        (
            "objective=oracle_law",
            "jepa.normalisation={_target_: jepa_lm.objective.normalisations.L2}",
        ),
        "SoftCrossEntropy takes laws, and normalised targets are none",
    ),
    (
        (
            "objective=lewm",
            "jepa.predictor=null",
            "jepa.alignment={_target_: jepa_lm.objective.alignment.SamePosition}",
            "~jepa.alignment.steps",
        ),
        "each latent would be its own target .*add a predictor",
    ),
    (("objective=lewm", "jepa.context.tap=12"), "block 12 does not exist.*0..2"),
    (
        ("objective=lewm", "jepa.context.tap=fnal"),
        "jepa.context.tap=fnal: expected one of final.* or a whole number or a list",
    ),
    (("objective=recipes/pr1556",), "block 3 does not exist"),
    (("objective=lewm", "jepa.target.tap=injector_latent"), "model/injector=chunk"),
    (("objective=lewm", "jepa.reach=9"), "jepa.reach=9: 0 to the 3 blocks"),
    (("objective=lewm", "jepa.alignment.steps=40"), "only 32 latents"),
    (("objective=lewm", "jepa.weight=-1"), "jepa.weight=-1"),
    (("objective=lewm", "jepa.weigth=1"), "did you mean jepa.weight"),
    (("objective=lewm", "jepa.weight=high"), "jepa.weight=high: expected a number"),
    (
        ("objective=lewm", "jepa.prediction_weight=0", "jepa.regularizers.sigreg.weight=0"),
        "nothing",
    ),
    (("objective=lewm", "+jepa.projector.out=20"), "do not fit each other"),
    (
        ("objective=patch", "+jepa.predictor.out=20"),
        "width 20, their targets 3 latents of width 64",
    ),
    (
        ("objective=vicreg", "jepa.predictor.activation=tanh"),
        "jepa.predictor.activation=tanh: expected one of relu2",
    ),
    (("objective=recipes/pr1006", "jepa.alignment.offsets=[1,2]"), "offsets=4: .*number equal"),
    (("objective=recipes/pr1312", "jepa.reach=1"), "no part of the trunk would be trained"),
    (("objective=recipes/pr2142", "+jepa.predictor.output_start=zero"), "3e3"),
    (
        (
            "objective=lewm",
            "+jepa.regularizers.loss={_target_: jepa_lm.objective.regularizers.Covariance, "
            "tensor: context, weight: 1}",
        ),
        "this name is reserved",
    ),
    (("objective=lewm", "jepa.diagnostics.every=0"), "diagnostics.every=0"),
    (("objective=vicreg", "jepa.context.view=null"), "SpanMask"),
]


@pytest.fixture
def untouched(monkeypatch):
    """Fail if a run gets as far as its data."""
    monkeypatch.setattr(TokenData, "prepare_data", lambda *_: pytest.fail("the data was prepared"))


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_a_mistake_gets_one_clear_line_before_data_is_touched(small, overrides, message, untouched):
    from hydra.errors import HydraException

    with pytest.raises((UserError, HydraException), match=message):
        train(small(*(("+" + o) if "weigth" in o else o for o in overrides)))


def test_latents_that_are_no_numbers_end_in_one_line(small):
    with pytest.raises(
        UserError, match=r"is (nan|inf) at step .* the last checkpoint before it is"
    ):
        train(
            small(
                "objective=recipes/pr1556",
                "model.backbone.layers=6",
                "optimizer.groups.matrices.lr=1e30",
                "jepa.diagnostics.every=1",
            )
        )


def test_a_component_that_is_no_number_is_named(small):
    with pytest.raises(UserError, match=r"jepa/prediction is (nan|inf) at step"):
        train(
            small(
                "objective=llm_jepa",
                NOW,
                "jepa.weight=1",
                "ce_weight=0",
                "optimizer.groups.matrices.lr=1e20",
                "trainer.log_every_n_steps=1",
            )
        )


class OfTwo(torch.nn.Module):
    """A distance that does not take the step's context."""

    def __init__(self, *, reduction: str) -> None:
        super().__init__()

    def forward(self, prediction, target):
        return (prediction - target).abs().mean()


def test_a_distance_that_takes_too_little_is_named_before_data_is_read(small, untouched):
    words = ("objective=patch", f"jepa.distance._target_={__name__}.OfTwo")
    with pytest.raises(
        UserError, match=r"jepa\.distance: OfTwo\.forward takes prediction, target and"
    ):
        train(small(*words))


def test_objectives_compose_with_any_tokenizer_and_quantization(small, tmp_path):
    for data, vocab in (("bytes256", 256), ("byte260", 260)):
        folder = tmp_path / data
        overrides = (f"data={data}", "data/corpus=text", f"data.tokenizer.vocab_size={vocab}")
        train(small("objective=vicreg", *overrides, "quantization=int6", run_dir=folder))
        assert summary(folder)["jepa"]["warnings"] == []
