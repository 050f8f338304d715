"""Mistakes in settings: one clear line for each, before anything slow is imported."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from jepa_lm.artifact.container import MAGIC
from jepa_lm.run import train
from jepa_lm.utils.errors import UserError
from tests.conftest import REPO

OF_HYDRA = [
    ("trainer.max_stepz=3", "trainer.max_stepz", "did you mean trainer.max_steps?"),
    ("model.backbone.headz=3", "model.backbone.headz", "did you mean model.backbone.heads?"),
    ("modell=transformer", "modell", "did you mean model?"),
    ("data=austin", "data=austin", "did you mean austen?"),
    ("objective=nune", "objective=nune", "did you mean none?"),
    ("seed=abc", "seed=abc", "expected a whole number from 0 to 4294967295"),
    ("seed=null", "seed=null", "expected a whole number from 0 to 4294967295"),
    ("compile=maybe", "compile=maybe", "expected true or false or null"),
    ("average.ship=old", "average.ship=old", "expected one of auto, raw, ema, swa, best"),
    ("lr=0.01", "lr:", "did you mean optimizer.groups.matrices.lr, optimizer.groups."),
    ("optimizer.lr=0.01", "optimizer.lr:", "did you mean optimizer.groups.matrices.lr,"),
    ("learning_rate=0.1", "learning_rate:", "did you mean optimizer.groups.matrices.lr,"),
    ("batch_size=8", "batch_size:", "did you mean data.batch_tokens?"),
    ("model.layers=8", "model.layers", "did you mean model.backbone.layers?"),
    ("weight=0.1", "weight", "did you mean jepa.weight, tokens.weight?"),
    ("model=mamba2 model.backbone.rope_dims=8", "rope_dims", "Transformer (model=transformer)"),
    ("model.norm_eps.x=1", "model.norm_eps.x", "model.norm_eps"),
    ("model.kernel=triton", "model.kernel", "+model.kernel=... adds it"),
    ("export.cap_bytes=1", "export.cap_bytes", "a setting of export.py, not of train.py"),
    ("logger=wandb,tensorboard", "logger=wandb,tensorboard", "logger=many logs to all of them"),
    ("objective=vicreg,patch", "objective=vicreg,patch", "-m objective=vicreg,patch starts"),
    ("a=b=c", "a=b=c: cannot be read", "to pass it as text: 'a=\"b=c\"'"),
    ("objective=recipes/pr1007", "objective=recipes/pr1007", "did you mean recipes/pr1006?"),
    ("model=mamba", "model=mamba", "did you mean mamba2?"),
    (
        "model=mamba2 model/value_embedding=shared",
        "model/value_embedding",
        "has no such group",
    ),
    ("jepa/distance=cosine", "jepa/distance", "choose an objective and then jepa/distance=cosine|"),
    (
        "jepa.schedule=linear",
        "jepa.schedule: objective=none has no such setting; choose objective=patch",
        "one of After, Constant, EveryNth, Linear,",
    ),
    ("data.seq_len=null", "data.seq_len=null: eval.stride refers to it", "needs another value"),
    (
        "objective=patch jepa.context=null",
        "jepa.context=null: jepa.target.pooling.size refers to it",
        "${jepa.context.pooling.size}",
    ),
    ("jepa.distance=l1", "objective=none has no such", "choose jepa/distance=cosine|"),
    ("jepa.target.decay=0.9", "jepa.target.decay: objective=none", "choose objective=patch or an"),
    (
        "-m objective=lewm,patch jepa.target.decay=0.9",
        "jepa.target.decay: where objective=lewm,patch is swept",
        "into an objective/NAME.yaml of your own (--config-dir FOLDER)",
    ),
    ("tokens.view=x", "tokens.view: tokens=none has no such", "choose tokens=mtp or another"),
    (
        "objective=mtp jepa.schedule=x",
        "an objective that predicts tokens has no",
        "objective=patch",
    ),
    (
        "objective=patch ~jepa.schedule",
        "~jepa.schedule:",
        "is null or not there; set it with jepa.",
    ),
    ("objective=vicreg jepa/normalisation=l2", "jepa/normalisation", "+jepa/normalisation=l2"),
    (
        "objective=patch jepa.distance={_target_:jepa_lm.objective.distances.Cosine,scale:1}",
        "jepa.distance: sets more than it has (jepa.distance._target_, jepa.distance.reduction)",
        "choose jepa/distance=cosine|cosine_doubled|hilp|info_nce|l2|law|law_with_head|lse|mse|smooth_l1|"
        "smooth_l1_and_kl|smooth_l1_wide, or "
        "~jepa.distance +jepa.distance={...}",
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
    ("+jepa.schedule=linear", "objective=none has no such setting", "one of After, Constant,"),
    ("+sampling.temprature=1", "sampling.temprature", "did you mean sampling.temperature?"),
    ("+foo=1", "foo", "no such setting"),
    ("+optimizer.groups.matrices.lrr=3", "optimizer.groups.matrices.lrr", "muon has no such"),
    ("optimizer.groups.matrices.lr=abc", "optimizer.groups.matrices.lr=abc", "expected a number"),
    ("optimizer.groups.head.match=head", "optimizer.groups.head.match=head", "expected"),
    ("quantization.rules.weights.min_values=abc", "min_values=abc", "expected a whole number"),
    ("quantization.rules.weights.match=[1]", "quantization.rules.weights.match=[1]", "expected"),
    ("jepa.weight=abc", "jepa.weight=abc", "expected a number"),
    ('jepa.weight="0.1"', 'jepa.weight="0.1" (text)', "a number of at least 0; leave out the quot"),
    ("objective=patch jepa.schedule=linear", "jepa.schedule=linear", "After, Constant, EveryNth"),
    (
        "objective=patch jepa.schedule=linear",
        "start:...",
        "{_target_:jepa_lm.schedules.factors.Linear",
    ),
    ("objective=patch jepa.distance=l1", "jepa.distance=l1", "choose jepa/distance=cosine|"),
    (
        "objective=vicreg jepa.regularizers.variance=1",
        "jepa.regularizers.variance=1",
        "SpectralFloor, StdHinge",
    ),
    (
        "model=mamba2 +model.backbone.heads=8",
        "model.backbone.heads",
        "of Transformer (model=transf",
    ),
    ("data.tokenizer.vocab_size=10", "vocab_size=10", "at least 260: one for each byte"),
    ("data=text data.path=nowhere.txt", "data.path=nowhere.txt", "no such file"),
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


@pytest.mark.parametrize(("override", "key", "right"), [*OF_HYDRA, *OF_OURS[:5]])
def test_a_mistake_is_one_line_that_names_key_and_remedy(command, override, key, right):
    code, line = command("train", *override.split(" "))
    assert code == 2
    assert line.startswith("error: ")
    assert key in line
    assert right in line


@pytest.mark.parametrize(("override", "key", "right"), OF_OURS[5:])
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
        ("eval", ["model.dim=64"], "model.dim: a setting of train.py, not of eval.py"),
        ("eval", ["stride=64"], "did you mean eval.stride?"),
        ("export", ["objective=vicreg"], "objective: a setting of train.py, not of export.py"),
        ("eval", ["ckpt_path=train.py"], "not a checkpoint of train.py"),
        ("eval", ["eval=slidng", "ckpt_path=last"], "did you mean sliding? choose one of"),
        ("export", [], "ckpt_path: not set; give a checkpoint, a run folder, or last"),
        ("export", ["ckpt_path=nowhere"], "ckpt_path=nowhere"),
        ("export", ["ckpt_path=x", "quantization=int9"], "did you mean int8?"),
    ],
)
def test_mistakes_of_eval_and_export(command, name, overrides, words):
    code, line = command(name, *overrides)
    assert code == 2
    assert words in line


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


QUICK = """
import pickle, re, sys
from jepa_lm import run
from jepa_lm.utils import gpus, schema
from jepa_lm.utils.errors import UserError

gpus.WITHOUT_CUDA = re.compile("no such line")  # a PyTorch with CUDA has to be asked
schema.register()
for command, cfg in pickle.load(sys.stdin.buffer):
    try:
        getattr(run, command)(cfg)
    except UserError as error:
        print(error)
print(*sys.modules.keys() & {"torch", "lightning"})
"""


def test_so_are_wrong_values_and_files(compose, tmp_path):
    """Their types and ranges stand in a table, and files are told apart by their first bytes."""
    artifact, checkpoint, text = (tmp_path / name for name in ("x.br", "x.ckpt", "x.jsonl"))
    artifact.write_bytes(MAGIC + b"rest")
    checkpoint.write_bytes(b"PK\x03\x04rest")
    text.write_text('{"body": "a text"}\n' * 9)
    said = {
        'train jepa.weight="0.1"': "leave out the quotation marks",
        "train trainer.max_steps=0": "trainer.max_steps=0: expected a whole number of at least 1",
        "train model.backbone.layers=0": "model.backbone.layers=0: expected a whole number of at",
        "train objective=patch jepa.schedule=linear": "one of After, Constant",
        "train model=mamba2 +model.backbone.rope_dims=8": "of Transformer (model=transformer)",
        "train data.tokenizer.vocab_size=10": "at least 260",
        f"train data=text data.path={text}": "but has body; jq -c '{text: .body}' FILE renames",
        "train data=text data.path=nowhere": "data.path=nowhere: no such file or folder",
        f"train ckpt_path={artifact}": "a run resumes only from a checkpoint",
        "eval": "set ckpt_path or artifact_path",
        f"eval ckpt_path={artifact}": f"write artifact_path={artifact}",
        f"eval artifact_path={checkpoint}": f"write ckpt_path={checkpoint}",
        f"eval ckpt_path={checkpoint} data.path=nowhere": "data.path=nowhere: no such file",
        f"export ckpt_path={artifact}": "it is exported already",
        "export ckpt_path=nowhere": "ckpt_path=nowhere: no such file or folder",
    }
    asked = [(line.split()[0].replace("eval", "evaluate"), compose(*line.split())) for line in said]
    done = subprocess.run(
        [sys.executable, "-c", QUICK], input=pickle.dumps(asked), capture_output=True, cwd=REPO
    )
    *told, heavy = done.stdout.decode().split("\n")[:-1]
    assert (done.returncode, heavy) == (0, ""), done.stderr
    for line, right in zip(told, said.values(), strict=True):
        assert right in line
