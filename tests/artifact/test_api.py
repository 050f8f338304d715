"""The Python interface: compose, train, load, runs."""

from __future__ import annotations

import gc
import json
import shutil
import sys

import hydra
import numpy
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import jepa_lm
from jepa_lm import UserError, api
from jepa_lm.api import MANY
from jepa_lm.data.tokenizers import ByteTokenizer
from jepa_lm.evaluation.continuations import encode_pair
from jepa_lm.generate import main as generate
from jepa_lm.run import evaluate
from jepa_lm.utils.going_on import recorded_overrides
from jepa_lm.utils.paths import CONF, TOKENIZER_FILE
from tests.conftest import SMALL

TEXT = (
    "It was a truth, \u00e9\u4e2d\U0001f600 universally acknowledged.\n\nAnother line of it. " * 9
)


@pytest.fixture(scope="module")
def model(exported):
    return jepa_lm.load(exported.folder, device="cpu")


def test_compose_gives_what_the_command_line_gives():
    words = ["objective=vicreg", "jepa.weight=0.3", "paths.run_dir=here"]
    found = jepa_lm.compose(words)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        expected = hydra.compose("train", words)
    assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)
    assert jepa_lm.compose(["task_name=mine"]).paths.run_dir.startswith("logs/mine/runs/20")
    given = jepa_lm.compose(["hydra.run.dir=here/${task_name}", "task_name=mine"])
    assert given.paths.run_dir == "here/mine"


def test_a_notebook_completes_the_names_of_the_interface():
    assert {"compose", "load", "runs", "train", "UserError"} <= set(dir(jepa_lm))


def test_compose_leaves_hydra_and_the_command_line_as_they_were():
    words = list(sys.argv)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        jepa_lm.compose()
        with pytest.raises(UserError):
            jepa_lm.compose(["nosuch=1"])
        assert GlobalHydra.instance().hydra is before
    assert not GlobalHydra.instance().is_initialized()
    assert sys.argv == words


def test_compose_reads_yaml_of_ones_own(tmp_path):
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text(
        "# @package jepa\ndefaults: [vicreg, _self_]\nweight: 0.77\n"
    )
    assert jepa_lm.compose(["objective=mine"], config_dir=tmp_path).jepa.weight == 0.77


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *(([flag], f"{flag}: starts several runs") for flag in MANY),
        (["study=weights"], "study=weights: starts several runs"),
        (["+sweep=weights"], "sweep=weights: starts several runs"),
        (["nosuch=1"], "nosuch: train.yaml has no such setting"),
        (["objective=vicrge"], "did you mean vicreg?"),
        (["seed=1,2"], "seed=1,2: more than one run"),
        (["seed"], "seed"),
        ("seed=1", "expected a list of words"),
        ([1], "overrides: 1 is no text; expected words such as 'jepa.weight=0.1'"),
    ],
)
def test_compose_names_the_mistake(words, message):
    with pytest.raises(UserError) as caught:
        jepa_lm.compose(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_train_returns_folder_summary_and_score(small_text, tmp_path):
    words = [*SMALL, f"data.path={small_text}", "trainer.max_steps=1"]
    found = jepa_lm.train(jepa_lm.compose([*words, f"paths.run_dir={tmp_path / 'a'}"]))
    assert found.folder == tmp_path / "a"
    assert found.summary["status"] == "finished"
    assert found.score == found.summary["val"]["bpb"]
    (run,) = jepa_lm.runs(tmp_path)
    assert (run.folder, run.bpb) == (found.folder, found.score)
    assert recorded_overrides(run.folder) == words


def test_a_run_from_python_records_how_it_was_composed(small_text, tmp_path):
    """Its objective by name; its words only where they give the config that it was trained with."""
    words = [*SMALL, f"data.path={small_text}", "trainer.max_steps=1", "objective=vicreg"]
    cfg = jepa_lm.compose([*words, "paths.run_dir=elsewhere"])
    cfg.paths.run_dir = str(tmp_path / "a")
    cfg.seed = 5
    before = HydraConfig.instance().cfg
    jepa_lm.train(cfg)
    (run,) = jepa_lm.runs(tmp_path)
    assert (run.objective, run.summary["seed"]) == ("vicreg", 5)
    assert recorded_overrides(run.folder) is None
    assert HydraConfig.instance().cfg is before
    assert "hydra" not in cfg
    known = id(cfg)
    assert known in api._COMPOSED
    del cfg
    gc.collect()
    assert known not in api._COMPOSED


def test_a_config_made_otherwise_is_trained_as_it_is(small_text, tmp_path):
    words = [*SMALL, f"data.path={small_text}", "trainer.max_steps=1", "objective=vicreg"]
    cfg = OmegaConf.create(
        OmegaConf.to_container(jepa_lm.compose([*words, f"paths.run_dir={tmp_path / 'a'}"]))
    )
    jepa_lm.train(cfg)
    (run,) = jepa_lm.runs(tmp_path)
    assert run.objective == "LatentPrediction"


def test_scores_are_those_of_eval(model, exported, trained, compose, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    of_run = jepa_lm.load(trained.folder)
    for found, named in ((model, "artifact_path"), (of_run, "ckpt_path")):
        source = exported.file if found is model else trained.checkpoint
        evaluate(compose("eval", f"{named}={source}", f"data.path={file}", "eval.baselines=false"))
        result = json.loads((tmp_path / "run" / "eval.json").read_text())
        scored = found.nll(TEXT)
        assert len(scored.nats) == result["tokens"] == len(scored.tokens)
        assert scored.nats.mean() == pytest.approx(result["nll"], abs=1e-6)
        assert found.score(TEXT) == pytest.approx(result["bpb"], abs=1e-6)
        assert scored.bytes.sum() == result["bytes"] == len(TEXT.encode())
        assert result["audit"]["matches"]
        assert result["text"] == str(file)


def test_hidden_states_are_those_of_the_model(model):
    states = model.hidden(TEXT, "final")
    tokens = torch.tensor(model.nll(TEXT).tokens)
    with torch.inference_mode():
        nats = torch.nn.functional.cross_entropy(
            model.model.logits(states[None])[0, :-1].float(), tokens, reduction="none"
        )
    assert states.shape == (len(tokens) + 1, model.model.dim)
    first = model.seq_len
    torch.testing.assert_close(
        nats[:first].double(), torch.from_numpy(model.nll(TEXT).nats[:first]), atol=1e-4, rtol=0
    )
    assert model.hidden(TEXT, 0).shape == states.shape
    assert not torch.equal(model.hidden(TEXT, 0), states)


def test_a_continuation_is_repeatable_and_has_its_prompt(model, capsys):
    text = model.generate("It was", tokens=12, seed=3)
    assert (
        text == model.generate("It was", tokens=12, seed=3) != model.generate("It was", 12, seed=4)
    )
    assert text.startswith("It was")
    assert model.generate("It was", tokens=numpy.int64(0)) == "It was"
    words = [str(model.path), "--prompt", "It was", "--tokens", "12", "--seed", "3"]
    assert generate([*words, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{text}\n"


def test_log_likelihoods_are_the_scores_of_full_windows(model, exported, compose, tmp_path):
    """A text of one window has its score; a longer one that of `eval=sliding` where the last one overlaps."""
    short, file = TEXT[:24], tmp_path / "text.txt"
    file.write_text(TEXT)
    settings = ("eval=sliding", f"eval.stride={model.seq_len}", "eval.baselines=false")
    evaluate(compose("eval", f"artifact_path={exported.file}", f"data.path={file}", *settings))
    slid = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert slid["tokens"] > 2 * model.seq_len
    one, long = model.log_likelihoods([("", short), ("", TEXT)])
    assert one.nats == pytest.approx(-model.nll(short).nats.sum(), rel=1e-6)
    assert long.nats == pytest.approx(-slid["nll"] * slid["tokens"], rel=1e-6)


def test_log_likelihoods_add_up_however_they_are_batched(model):
    context, continuations = (
        "It was a truth",
        [" universally", " known.", " a", " of it, and of that"],
    )
    pairs = [("", context), *((context, text) for text in continuations)]
    before, *found = model.log_likelihoods(pairs)
    for text, after in zip(continuations, found, strict=True):
        (whole,) = model.log_likelihoods([("", context + text)], rows=1)
        assert before.nats + after.nats == pytest.approx(whole.nats, rel=1e-6)
    # A space belongs to the word after it.
    assert model.log_likelihoods([(f"{context} ", "universally")])[0] == pytest.approx(found[0])
    # What is scored is after the end of a context that is longer than a window.
    (far,) = model.log_likelihoods([(TEXT + context, " universally")])
    (near,) = model.log_likelihoods([(TEXT[13:] + context, " universally")])
    assert far.nats == pytest.approx(near.nats, rel=1e-6)


def test_what_the_model_would_write_is_greedy(model):
    written = model.continuation("It was", tokens=6, temperature=0)
    assert model.generate("It was", tokens=6, temperature=0) == f"It was{written}"
    own, other = model.log_likelihoods([("It was", written), ("It was", f"{written[:-1]}\u00df")])
    assert (own.greedy, other.greedy) == (True, False)


def test_a_continuation_ends_before_a_text(model):
    whole = model.continuation("It was", tokens=40, seed=3)
    end = whole[9:11]
    assert (
        model.continuation("It was", 40, seed=3, until=["never", end]) == whole[: whole.index(end)]
    )


@pytest.mark.parametrize("size", [256, 260])
def test_a_pair_is_one_text_of_tokens(size):
    tokenizer = ByteTokenizer(vocab_size=size)
    for context, continuation in (("ab", "cd"), ("", "cd"), ("ab ", "cd"), (" ", "cd")):
        ids, scored = encode_pair(tokenizer, context, continuation)
        spaces = len(context) - len(context.rstrip())
        assert (scored, len(ids)) == (spaces + 2, 1 + len(context) + 2)
        assert tokenizer.decode(ids[1:]).decode() == context + continuation


def test_a_token_that_spans_a_pair_is_scored(model):
    tokenizer = model.tokenizer
    assert len(tokenizer.encode(" the")) == 1
    ids, scored = encode_pair(tokenizer, "of t", "he")
    assert (ids[1:], scored) == (tokenizer.encode("of the").tolist(), 1)


def test_a_file_alone_is_enough(exported, tmp_path, monkeypatch):
    """No data, no tokenizer beside it, no cache: as on the machine of a colleague."""
    alone = shutil.copy(exported.file, tmp_path / "colleague.br")
    monkeypatch.setenv("JEPA_LM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jepa_lm.artifact.trained_model.load_data", None)
    assert jepa_lm.load(alone).score(TEXT) == jepa_lm.load(exported.folder).score(TEXT)
    assert not (tmp_path / "cache").exists()


def test_a_run_holds_its_tokenizer(trained, monkeypatch):
    assert (trained.folder / TOKENIZER_FILE).is_file()
    monkeypatch.setattr("jepa_lm.artifact.trained_model.load_data", None)
    assert jepa_lm.load(trained.checkpoint).tokenizer.vocab_size == 400


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda m, p: jepa_lm.load(p / "none"), "^path=.*none: no such file or folder"),
        (lambda m, p: jepa_lm.load(p), r"^path=.*no checkpoints/\*\.ckpt"),
        (lambda m, p: jepa_lm.load(m.path, device="gpu"), "device=gpu is not available"),
        (lambda m, p: jepa_lm.load(m.path, trust=["nosuch"]), "trust=.nosuch.: cannot be imported"),
        (lambda m, p: jepa_lm.runs(p / "none"), "folder=.*none: no such folder"),
        (lambda m, p: m.score(" \n"), "text: is empty or blank"),
        (lambda m, p: m.nll(""), "text: is empty or blank"),
        (lambda m, p: m.hidden("a b", 99), "tap=99: block 99 does not exist"),
        (lambda m, p: m.log_likelihoods([("a", "")]), "continuation='': has no token"),
        (
            lambda m, p: m.hidden("a b", "2"),
            r"tap=.2. \(text\): expected one of final, last, embedding",
        ),
        (lambda m, p: m.hidden("a b", None), "tap=None: expected one of final"),
        (lambda m, p: m.generate(tokens=-1), "tokens=-1: expected a whole number of at least 0"),
        (lambda m, p: m.generate(tokens=2.5), "tokens=2.5: expected a whole number"),
        (lambda m, p: m.generate(temperature=float("nan")), "temperature=nan: expected a number"),
        (lambda m, p: m.generate(seed=2**70), f"seed={2**70}: expected a whole number from 0 to"),
        (lambda m, p: m.generate(7), "prompt=7: expected text or null"),
        (lambda m, p: m.generate("\ud800"), "prompt: holds half a surrogate pair"),
        (lambda m, p: m.continuation("a", until="b"), "until=b: expected a list, each entry text"),
        (lambda m, p: m.score(None), "text=None: expected text"),
        (lambda m, p: m.score("\ud800"), "text: holds half a surrogate pair"),
        (lambda m, p: m.log_likelihoods([("a", "\ud800")]), "continuation: holds half a surrogate"),
        (
            lambda m, p: jepa_lm.train(None),
            "cfg: expected a config of jepa_lm.compose, not NoneType",
        ),
    ],
)
def test_mistakes_are_one_line(model, tmp_path, mistake, message):
    with pytest.raises(UserError, match=message) as caught:
        mistake(model, tmp_path)
    assert "\n" not in str(caught.value)
