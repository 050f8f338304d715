"""The command line: exit codes, one clear line for each mistake, quick answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml
from hydra.errors import MissingConfigException

from jepa_lm import cli
from jepa_lm.run import train
from jepa_lm.utils import paths
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.explaining import check_words, explain
from tests.conftest import REPO


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """command("train", overrides...) -> (exit code, last line on stderr), in this process."""

    def run(name: str, *overrides: str) -> tuple[int, str]:
        where = f"hydra.run.dir={tmp_path}/out"
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *overrides, where])
        code = cli.launch(name)
        lines = capsys.readouterr().err.strip().splitlines()
        return code, lines[-1] if lines else ""

    return run


OF_HYDRA = [
    ("trainer.max_stepz=3", "trainer.max_stepz", "did you mean trainer.max_steps?"),
    ("model.backbone.headz=3", "model.backbone.headz", "did you mean model.backbone.heads?"),
    ("modell=transformer", "modell", "did you mean model?"),
    ("data=austin", "data=austin", "did you mean austen?"),
    ("objective=nune", "objective=nune", "did you mean none?"),
    ("seed=abc", "seed", "Value 'abc'"),
    ("compile=maybe", "compile", "not a valid bool"),
    ("a=b=c", "a=b=c: cannot be read", "to pass it as text: 'a=\"b=c\"'"),
    ("objective=recipes/pr1007", "objective=recipes/pr1007", "did you mean recipes/pr1006?"),
    ("model=mamba", "model=mamba", "did you mean mamba2?"),
    (
        "model=mamba2 model/value_embedding=shared",
        "model/value_embedding",
        "has no such group",
    ),
    ("jepa/distance=cosine", "jepa/distance", "objective=none has no parts, choose an objective"),
    (
        "objective=patch ~jepa.schedule",
        "~jepa.schedule:",
        "is null or not there; set it with jepa.",
    ),
    ("objective=vicreg jepa/normalisation=l2", "jepa/normalisation", "+jepa/normalisation=l2"),
    (
        "objective=patch jepa.distance={_target_:jepa_lm.objective.distances.Cosine,scale:1}",
        "jepa.distance: sets more than it has (jepa.distance._target_, jepa.distance.reduction)",
        "choose jepa/distance=cosine|cosine_doubled|mse|smooth_l1, or ~jepa.distance +jepa.distance={...}",
    ),
    ("eval=sliding", "eval: with these choices", "its settings are eval.stride"),
    (
        "objective=vicreg jepa.regularizers.varaince.weight=0",
        "jepa.regularizers.varaince.weight",
        "did you mean jepa.regularizers.variance.weight?",
    ),
    ("objective=lewm jepa.alignment.step=2", "jepa.alignment.step", "jepa.alignment.steps?"),
    ("model=mamba2 model.backbone.state_size=32", "state_size", "model.backbone.state_dim?"),
]
"""Mistakes that Hydra refuses: an override, what the line names, and the remedy."""
OF_OURS = [
    ("+trainer.max_stepz=3", "trainer.max_stepz", "did you mean trainer.max_steps?"),
    ("+jepa.wieght=0.1", "jepa.wieght", "did you mean jepa.weight?"),
    ("+sampling.temprature=1", "sampling.temprature", "did you mean sampling.temperature?"),
    ("+foo=1", "foo", "no such setting"),
    ("+optimizer.groups.matrices.lrr=3", "optimizer.groups.matrices.lrr", "muon has no such"),
    ("optimizer.groups.matrices.lr=abc", "optimizer.groups.matrices.lr=abc", "expected a number"),
    ("optimizer.groups.head.match=head", "optimizer.groups.head.match=head", "expected"),
    ("quantization.rules.weights.min_values=abc", "min_values=abc", "expected a whole number"),
    ("quantization.rules.weights.match=[1]", "quantization.rules.weights.match=[1]", "expected"),
    ("jepa.weight=abc", "jepa.weight=abc", "expected a number"),
    ("model.backbone.layers=five", "model.backbone.layers=five", "expected a whole number"),
    ("model.smear_gate=maybe", "model.smear_gate=maybe", "expected true or false"),
    (
        "trainer.max_steps=1e3",
        "trainer.max_steps=1000.0",
        "expected a whole number of at least 1 or null",
    ),
    ("trainer.max_time=soon", "trainer.max_time=soon", "expected a number above 0 or null"),
    ("trainer.max_steps=null", "trainer.max_steps", "both unset"),
    ("trainer.precision=fp8", "trainer.precision=fp8", "bf16-mixed"),
    ("model.backbone.heads=7", "model.backbone.heads=7", "must divide model.dim"),
    ("optimizer.freeze=[bigramm.*]", "optimizer.freeze=bigramm.*", "fits no parameter"),
    ("sampling.temperature=-1", "sampling.temperature=-1", "a number of at least 0"),
    ("ckpt_path=nowhere", "ckpt_path=nowhere", "no such file"),
    ("data=text", "data.path is not set", "data=text reads"),
    ("data.path=a.txt", "data.path=a.txt", "reads no files; add data=text, or"),
    (
        "debug=tiny data=text data.path=a.txt",
        "data.path=a.txt",
        "or with debug=tiny, which always uses that corpus, data/corpus=text",
    ),
    ('data=text data.path=""', "data.path: is empty", "name a file or a folder"),
    ("data.tokenizer.vocab_size=70000", "vocab_size=70000", "from 1 to 65536"),
    ("data.seq_len=9999999", "data.seq_len=9999999", "choose at most"),
    ("data.batch_tokens=1000", "data.batch_tokens=1000", "must be a multiple"),
    ("data.order=random", "data.order=random", "one of stream, shuffle"),
    ("average.decay=1.5", "average.decay=1.5", "at least 0 and below 1"),
    ("objective=lewm jepa.context.tap=12", "jepa.context.tap=12", "blocks 0..4"),
    ("objective=vicreg jepa.predictor.activation=swish", "jepa.predictor", "one of relu2"),
    ("objective=patch data.seq_len=36", "jepa.context.pooling.size=8", "must divide"),
    ("model=mamba2 model.kernel=triton", "model.kernel=triton", "needs"),
    ("model=mamba2 quantization=mixed_int6_int8", "quantization.rules.blocks", "fits no parameter"),
    ("optimizer.ghost_steps=-1", "optimizer.ghost_steps=-1", "a whole number of at least 0"),
    ("temperature=hot", "temperature=hot", "a number above 0 or search"),
]
"""Mistakes that Hydra lets through."""


WORDS = [
    ("seed=", "seed=: the value is missing; null unsets a setting"),
    ("=3", "=3: the key is missing"),
    ("objective=null", "objective=null: choose one of chunk"),
    ("objective=base", "objective=base: only for the others to inherit; choose one of chunk"),
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--lr", "0.1"],
            "unrecognized arguments: --lr; settings are given as key=value without dashes",
        ),
        (["--experimental-rerun=config.pickle"], "would execute a file's contents"),
        (["-m", "--cfg=job"], "use only one of them"),
        (["--resolve"], "--resolve: only works with --cfg"),
        (["seed"], "seed: a setting is given as key=value"),
        (["task_name='a"], "unclosed quotation mark"),
    ],
)
def test_a_flag_or_a_word_that_is_none(command, words, said):
    code, line = command("eval", *words)
    assert code == 2
    assert said in line


def test_flags_may_stand_behind_the_overrides(command, monkeypatch, tmp_path):
    """argparse alone treats such flags as unknown arguments."""
    scored = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.run, "evaluate", lambda cfg: scored.append(cfg.ckpt_path))
    assert command("eval", "ckpt_path=a,b", "-m", "task_name=b")[0] == 0
    assert scored == ["a", "b"]


@pytest.mark.parametrize(("override", "key", "right"), [*OF_HYDRA, *OF_OURS[:4]])
def test_a_mistake_is_one_line_that_names_key_and_remedy(command, override, key, right):
    code, line = command("train", *override.split(" "))
    assert code == 2
    assert line.startswith("error: ")
    assert key in line
    assert right in line


@pytest.mark.parametrize(("override", "key", "right"), OF_OURS[4:])
def test_so_is_one_that_hydra_lets_through(compose, override, key, right):
    """Without the command around it, which shows every `UserError` in the same way."""
    with pytest.raises(UserError) as told:
        train(compose("train", *override.split(" ")))
    assert key in str(told.value)
    assert right in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("eval", [], "set ckpt_path or artifact_path"),
        ("eval", ["artifact_path=README.md"], "not an artifact"),
        ("eval", ["ckpt_path=train.py"], "not a checkpoint of train.py"),
        ("eval", ["eval=slidng", "ckpt_path=last"], "did you mean sliding? choose one of"),
        ("export", [], "ckpt_path"),
        ("export", ["ckpt_path=nowhere"], "ckpt_path=nowhere"),
        ("export", ["ckpt_path=x", "quantization=int9"], "did you mean int8?"),
    ],
)
def test_mistakes_of_eval_and_export(command, name, overrides, words):
    code, line = command(name, *overrides)
    assert code == 2
    assert words in line


@pytest.mark.slow
def test_over_the_cap_is_exit_code_three(command, trained):
    code, line = command("export", f"ckpt_path={trained.folder}", "export.cap_bytes=1000")
    assert code == 3
    assert "export.cap_bytes=1000" in line


def test_last_is_the_newest_run(command, trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, line = command("export", "ckpt_path=last")
    assert code == 2
    assert "ckpt_path=last: no checkpoints/*.ckpt" in line
    for name in ("old", "new"):
        folder = tmp_path / "logs" / "train" / "runs" / name / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").write_bytes(trained.checkpoint.read_bytes())
        os.utime(folder / "last.ckpt", (1, 1 if name == "old" else 2))
    from jepa_lm.model.checkpoint import find_checkpoint

    assert find_checkpoint("last").parts[-3] == "new"


SHOWN = [("train",), ("eval",), ("export",)] + [
    pytest.param(("train", f"experiment={path.stem}"), marks=pytest.mark.slow)
    for path in sorted((REPO / "conf" / "experiment").glob("*.yaml"))
]


@pytest.mark.parametrize("words", SHOWN)
def test_a_config_is_shown_resolved_and_no_folder_is_made(monkeypatch, capsys, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{words[0]}.py", *words[1:], "--cfg", "job", "--resolve"])
    assert cli.launch(words[0]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["paths"]["run_dir"].startswith("logs/")
    assert "${" not in json.dumps(shown)
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_key_is_answered_without_loading_torch():
    """The answer is quick because nothing heavy is imported before the config is composed."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "train.py", "trainer.max_stepz=3"],
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: trainer.max_stepz")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "numpy", "sentencepiece"}


@pytest.mark.slow
def test_stdout_of_describe_is_json_only(tmp_path):
    done = subprocess.run(
        [sys.executable, "train.py", "describe=true", f"hydra.run.dir={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"]["shipped"] > 0


@pytest.mark.parametrize("script", ["train.py", "eval.py", "export.py"])
def test_a_python_without_the_packages_is_told_in_one_line(script):
    alone = subprocess.run(
        [sys.executable, "-S", script], cwd=REPO, capture_output=True, text=True, env={}
    )
    assert alone.returncode == 2
    (line,) = alone.stderr.splitlines()
    assert "has no hydra; run `make install`, then `source .venv/bin/activate`" in line


@pytest.mark.parametrize("launcher", ["joblib", "submitit_slurm"])
def test_a_launcher_of_an_extra_names_it(launcher):
    missing = MissingConfigException("", missing_cfg_file=f"hydra/launcher/{launcher}")
    said = f"hydra/launcher={launcher}: is not installed; pip install 'jepa_lm[sweep]'"
    assert explain(missing, "train") == (said, 2)


def test_messages_name_the_command_that_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert paths.program("eval") == "eval.py"
    assert paths.called("train") == ["python", "train.py"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jepa-train"])
    assert paths.program("eval") == "jepa-eval"
    assert paths.called("train") == ["jepa-train"]


def test_modules_beside_the_users_yaml_are_found(command, monkeypatch, tmp_path):
    """By this process, and by those that it starts."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "before")
    given = f"--config-dir={tmp_path}"
    assert command("train", given, "a=b=c")[0] == 2
    assert sys.path[-1] == str(tmp_path)
    assert os.environ["PYTHONPATH"] == f"before{os.pathsep}{tmp_path}"
    said = f"error: {given}/none: no such folder; it holds YAML as conf/ does"
    assert command("train", f"{given}/none") == (2, said)


EDITABLE = """
import importlib.util, sys
package = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location("jepa_lm", package)
sys.modules["jepa_lm"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["jepa_lm"])
from jepa_lm.cli import train
sys.exit(train())
"""
"""An editable install finds modules without a folder on `sys.path`."""


def test_the_sweeper_is_found_in_an_editable_install(tmp_path):
    package = str(REPO / "jepa_lm" / "__init__.py")
    done = subprocess.run(
        [sys.executable, "-c", EDITABLE, package, "--cfg", "hydra", "--package", "hydra.sweeper"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "_target_: hydra_plugins.jepa_lm_study.ResumableSweeper" in done.stdout
