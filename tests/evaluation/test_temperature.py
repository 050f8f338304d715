"""Temperature: searched on training tokens only, stored in the artifact, used in scoring."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext

import pytest
import torch

from jepa_lm.artifact.loaded_model import load_data, load_model
from jepa_lm.artifact.loading import load_artifact
from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.token_data import TokenData
from jepa_lm.data.windows import StandardWindows
from jepa_lm.evaluation import temperature
from jepa_lm.evaluation.scoring import Scorer
from jepa_lm.evaluation.temperature import COARSE, mean_nll, search_temperature
from jepa_lm.model import LanguageModel
from jepa_lm.model.checkpoint import inference_model, read_checkpoint
from jepa_lm.run import evaluate, export
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import check_type
from jepa_lm.utils.schema import Temperature


class Sharpened(LanguageModel):
    """A model with multiplied logits, so that its best temperature moves by a known factor."""

    factor = 1.0

    def logits(self, hidden):
        return super().logits(hidden) * self.factor


@pytest.fixture
def scorer_and_data(trained):
    loaded = load_model(str(trained.checkpoint), None)
    data = load_data(loaded, {})
    loaded.model.__class__ = Sharpened
    counter = ByteCounter(data.tokenizer.token_bytes())
    return Scorer(loaded.model, counter, torch.device("cpu"), "32-true"), data


SHARP = 2.5
"""After six steps the best temperature lies below the grid; sharpened, it lies inside."""


@pytest.mark.slow
def test_the_search_undoes_a_factor_on_the_logits(scorer_and_data):
    scorer, data = scorer_and_data
    sizes = dict(seq_len=data.seq_len, rows=8)
    scorer.model.factor = SHARP
    plain = search_temperature(scorer, data.streams["train"], **sizes)
    assert 0.7 < plain["temperature"] < 1.3
    for factor in (0.6, 1.37):
        scorer.model.factor = SHARP * factor
        found = search_temperature(scorer, data.streams["train"], **sizes)
        # The grids' points are .02 to .5 apart, and the best temperature may lie between two of them.
        assert found["temperature"] / factor == pytest.approx(plain["temperature"], rel=0.15)
        assert len(found["nll"]) == len(COARSE) + 6
        assert found["nll"][f"{found['temperature']:g}"] == min(found["nll"].values())


@pytest.mark.parametrize("numbers", [(), (1.3,)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_not_the_best(scorer_and_data, monkeypatch, bad, numbers):
    scorer, data = scorer_and_data

    def nll(scorer, windows, temperatures):
        return {t: 2.0 if t in numbers else bad for t in temperatures}

    monkeypatch.setattr(temperature, "mean_nll", nll)
    found = None
    with (
        nullcontext()
        if numbers
        else pytest.raises(UserError, match="temperature=search: all scores")
    ):
        found = search_temperature(scorer, data.streams["train"], seq_len=data.seq_len, rows=8)
    assert (found or {}).get("temperature") == (numbers or (None,))[0]


def test_it_reads_training_tokens_and_no_others(scorer_and_data, monkeypatch):
    """Planted bug in the same test: a search over the validation text fails this check."""
    scorer, data = scorer_and_data
    read = TokenStream.read

    def guarded(stream, start, out):
        assert stream is not data.streams["val"], "the validation text was read"
        return read(stream, start, out)

    monkeypatch.setattr(TokenStream, "read", guarded)
    sizes = dict(seq_len=data.seq_len, rows=8)
    found = search_temperature(scorer, data.streams["train"], **sizes)
    assert found["tokens"] == min(65_536, data.streams["train"].total - 1)
    monkeypatch.setattr(temperature, "TOKENS", 100)
    assert search_temperature(scorer, data.streams["train"], **sizes)["tokens"] == 100
    with pytest.raises(AssertionError, match="validation text was read"):
        search_temperature(scorer, data.streams["val"], **sizes)


@pytest.mark.usefixtures("answers_here")
def test_the_validation_text_does_not_change_it(trained, compose, tmp_path, monkeypatch):
    """The whole command with another validation text gives the same temperature."""
    found = []
    for swapped in (False, True):
        if swapped:
            setup = TokenData.setup

            def other(self, setup=setup):
                setup(self)
                self.streams["val"] = TokenStream(self.prepared.train, 1000)

            monkeypatch.setattr(TokenData, "setup", other)
        words = ("temperature=search", "export.codecs=[zlib]", "export.protocols=[]")
        export(compose("export", f"ckpt_path={trained.checkpoint}", *words))
        found.append(json.loads((tmp_path / "run" / "export.json").read_text())["temperature"])
    assert found[0] == found[1]


@pytest.mark.usefixtures("answers_here")
def test_it_travels_with_the_artifact_and_divides_its_logits(trained, compose, tmp_path):
    export(
        compose(
            "export",
            f"ckpt_path={trained.checkpoint}",
            "temperature=1.3",
            "quantization=none",
            "export.max_bpb_loss=1",
            "export.codecs=[zlib]",
        )
    )
    path = next((tmp_path / "run").glob("artifact.*"))
    assert load_artifact(path).meta["temperature"] == 1.3
    quick = ("eval.baselines=false", "eval.audit=false")
    evaluate(compose("eval", f"artifact_path={path}", *quick))
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert result["temperature"] == 1.3
    model = inference_model(read_checkpoint(trained.checkpoint))
    data = load_data(load_model(str(trained.checkpoint), None), {})
    windows = StandardWindows(data.streams["val"], seq_len=data.seq_len, rows=4)
    counter = ByteCounter(data.tokenizer.token_bytes())
    wanted = mean_nll(Scorer(model, counter, torch.device("cpu"), "32-true"), windows, (1.3,))[1.3]
    assert result["nll"] == pytest.approx(wanted, abs=2e-3)  # weights were rounded in the file
    evaluate(compose("eval", f"artifact_path={path}", *quick, "eval.temperature=1"))
    again = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert again["temperature"] == 1.0
    assert again["bpb"] == pytest.approx(trained.bpb, abs=1e-6)


@pytest.mark.parametrize("value", [0, -1, "warm", True, float("inf")])
def test_what_is_no_temperature_is_named(value):
    with pytest.raises(
        UserError, match=rf"temperature={value}: expected a number above 0 or search"
    ):
        check_type("temperature", value, Temperature)
