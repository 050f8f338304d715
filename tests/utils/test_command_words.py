"""Words of a command line that are no override: one line shows what was meant, to paste into a shell."""

from __future__ import annotations

import shlex
import sys

import pytest

from jepa_lm.artifact.container import MAGIC
from jepa_lm.utils.command_words import check_words, read_arguments
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.explaining import explain
from jepa_lm.utils.finding import STARTS

MEANT = [
    ("train jepa.weight 0.1", "jepa.weight=0.1"),
    ("train seed=1 jepa.weight 0.1", "jepa.weight=0.1"),
    ("train lr 0.1", "lr=0.1"),
    ("train -m jepa.weight 0.1 0.2", "jepa.weight=0.1,0.2"),
    ("train jepa.weight 0.1 0.2", "-m jepa.weight=0.1,0.2"),
    ("train -m objective patch vicreg", "objective=patch,vicreg"),
    ("train -m lr 0.1 0.2", "lr=0.1,0.2"),
    ("train -m seed = 1 2 3", "seed=1,2,3"),
    ("train -m seed= 1 2 3", "seed=1,2,3"),
    ("train -m --seed 1 2 3", "seed=1,2,3"),
    ("train sampling.prompt It was late", 'sampling.prompt="It was late"'),
    ("train objective = vicreg", "objective=vicreg"),
    ("train objective= vicreg", "objective=vicreg"),
    ("train objective =vicreg", "objective=vicreg"),
    ("train describe", "describe=true"),
    ("train describe seed=1", "describe=true"),
    ("train average.swa", "average.swa=true"),
    ("train compile", "compile=true"),
    ("train vicreg", "objective=vicreg"),
    ("train --objective=vicreg", "objective=vicreg"),
    ("train --lr 0.1", "lr=0.1"),
    ("train --max-steps 5", "max_steps=5"),
    ("train --describe", "describe=true"),
    ("train sampling.temperature -1", "sampling.temperature=-1"),
    ("train -m seed=1 2 3", "seed=1,2,3"),
    ("train -m seed=1, 2, 3", "seed=1,2,3"),
    ("train seed=1 2 3 model.dim=64", "-m seed=1,2,3"),
    ("train sampling.prompt=It was late", 'sampling.prompt="It was late"'),
    ("train last", "ckpt_path=last"),
    ("eval last", "ckpt_path=last"),
    ("export README.md", "ckpt_path=README.md"),
]


@pytest.fixture
def refused(monkeypatch):
    """refused("train", words...) returns what is said about a command line."""

    def ask(command: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{command}.py", *words])
        with pytest.raises(UserError) as told:
            read_arguments(command)
        return str(told.value)

    return ask


@pytest.mark.parametrize(("line", "meant"), MEANT)
def test_what_was_meant_can_be_pasted(refused, line, meant):
    said = refused(*line.split())
    given = [word for word in line.split()[1:] if word != "-m"]
    assert said.startswith(("unrecognized arguments: --", *given))
    pasted = shlex.split(said)
    assert pasted[-len(meant.split(" ")) :] == meant.split(" ") or pasted[-1] == meant


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train objective", "choose objective=bootleg|chunk|"),
        ("train model/head", "choose model/head=tied|"),
        ("train ckpt_path", "ckpt_path=..."),
        ("train seed=", "the value is missing"),
        ("train logger=[wandb,tensorboard]", "logger=many logs to all of them"),
        ("train objective=[vicreg,patch]", "-m objective=vicreg,patch starts one run for each"),
        ("train nonsense", "nonsense: a setting is given as key=value, such as seed=1"),
        ("train --config-dir", "--config-dir/-cd: expected one argument"),
        ("train --cfg jobs", "invalid choice: 'jobs'"),
    ],
)
def test_or_the_choices_are_named(refused, line, said):
    assert said in refused(*line.split())


def test_an_artifact_is_told_from_a_checkpoint(refused, tmp_path):
    (tmp_path / "x.br").write_bytes(MAGIC + b"rest")
    (tmp_path / "x.ckpt").write_bytes(b"PK\x03\x04rest")
    assert MAGIC in STARTS
    assert f"write artifact_path={tmp_path}/x.br" in refused("eval", f"{tmp_path}/x.br")
    assert f"write ckpt_path={tmp_path}/x.ckpt" in refused("eval", f"{tmp_path}/x.ckpt")


def test_flags_keep_their_values(monkeypatch):
    given = ["seed=1", "--config-dir", "my", "-m", "~debug", "--info", "-cjob", "--cfg=job"]
    monkeypatch.setattr(sys, "argv", ["train.py", *given[:5]])
    asked = read_arguments("train")
    assert sys.argv[1:] == ["--config-dir", "my", "-m", "seed=1", "~debug"]
    assert (asked.config_dir, asked.multirun) == ("my", True)
    for flag, found in (("--info", ["--info=all"]), ("-cjob", ["-cjob"]), ("--cfg=job", None)):
        monkeypatch.setattr(sys, "argv", ["train.py", "seed=1", flag])
        read_arguments("train")
        assert sys.argv[1:] == [*(found or [flag]), "seed=1"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("It's", "unclosed quotation mark"),
        ('say "so', "unclosed quotation mark"),
        ("a=b", "mismatched input '='"),
        ("Hello!", "characters that need quotes"),
        ("$HOME's", "unclosed quotation mark"),
    ],
)
def test_text_that_hydra_cannot_read_is_shown_quoted(value, why):
    """What is shown is a word that a shell passes on and that Hydra reads as this text."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parser = OverridesParser.create()
    with pytest.raises(OverrideParseException) as error:
        parser.parse_overrides([f"sampling.prompt={value}"])
    said, code = explain(error.value, "train")
    assert (code, why in said) == (2, True)
    (word,) = shlex.split(said.partition("to pass it as text: ")[2])
    assert parser.parse_override(word).value() == value


WORDS = [
    ("seed=", "seed=: the value is missing; null unsets a setting"),
    ("=3", "=3: the key is missing"),
    ("objective=null", "objective=null: choose one of bootleg, chunk"),
    (
        "objective=base",
        "objective=base: only for the others to inherit; choose one of bootleg, chunk",
    ),
    ("quantization=base", "only for the others to inherit; choose one of int4"),
    ("+debug=null", "choose one of overfit, profiler, tiny, or leave this override out"),
    ("jepa/normalisation=null", "leave this override out; ~jepa/normalisation removes this part"),
    ("jepa.distance=cosine", "this is a config group; write jepa/distance=cosine"),
    ("sweep=5", "sweep=5: choose one of jepa_weight"),
    ("data.tokenizer=bytes256", "this is a config group; write data/tokenizer=bytes256"),
    ("hydra.sweeper=basic", "hydra/sweeper=basic"),
]


@pytest.mark.parametrize(("word", "said"), WORDS)
def test_a_word_that_hydra_would_misread_is_named_before_it_does(word, said):
    check_words(["seed=1", "model.dim=64", "~debug", "tags=[]", "task_name=a=b"])
    with pytest.raises(UserError) as told:
        check_words(["seed=1", word])
    assert said in str(told.value)
