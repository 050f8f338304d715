"""The frozen teacher: what it predicts, that nothing trains or keeps it, and which files it may come from."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

import jepa_lm
from jepa_lm.artifact.loaded_model import load_model
from jepa_lm.data.corpora import Austen
from jepa_lm.model.checkpoint import read_checkpoint
from jepa_lm.run import evaluate, export, train
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import auxiliary, compared, noise, random_batch
from tests.runs import same, state, summary

ROPE = "model.backbone.rope_dims=8"


@pytest.fixture
def teacher_model(teacher):
    return load_model(str(teacher), None).model


@pytest.mark.parametrize("width", [64, 32])
def test_every_position_predicts_the_teacher(build, teacher_model, width):
    """The student may have another width than the teacher, whose latents are not projected."""
    task = build("objective=distil", f"model.dim={width}", "jepa.target.dim=64", ROPE)
    noise(task.model)
    batch = random_batch()
    latents, main, _ = compared(task, batch)
    (pair,) = latents.pairs
    hidden = teacher_model(batch["inputs"])[1].final
    assert torch.equal(pair.target, hidden)
    line = task.objective.predictor.linear
    torch.testing.assert_close(pair.prediction, main.final @ line.weight.T + line.bias)
    torch.testing.assert_close(auxiliary(task, batch), F.mse_loss(pair.prediction, hidden))


def test_the_twin_in_token_space_is_the_divergence_of_the_laws(build, teacher_model):
    task = build("objective=distil_law", "model.dim=32", "jepa.target.dim=64", ROPE)
    noise(task.model)
    batch = random_batch()
    mine, law = (m(batch["inputs"])[0].log_softmax(-1) for m in (task.model, teacher_model))
    plain = (law.exp() * (law - mine)).sum(-1).mean()
    loss = auxiliary(task, batch)
    torch.testing.assert_close(loss, plain)
    gradients = [torch.autograd.grad(x, list(task.model.parameters())) for x in (loss, plain)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_nothing_trains_or_keeps_the_teacher(small, teacher, tmp_path):
    folder = tmp_path / "run"
    train(small("objective=distil", "average.decay=0.9"))
    kept = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert not [name for name in kept["state_dict"] if "teacher" in name]
    record = kept["teacher"]
    assert record == summary(folder)["teacher"]
    assert record["path"] == str(teacher)
    assert record["tokenizer"] == kept["tokenizer"]
    plain = small("objective=none", run_dir=tmp_path / "none")
    train(plain)
    count = summary(tmp_path / "none")["parameters"]
    assert summary(folder)["parameters"]["shipped"] == count["shipped"]
    assert summary(folder)["parameters"]["training_only"] == 64 * 64 + 64  # the predictor


def test_a_run_resumes_with_the_same_file_alone(small, teacher, tmp_path):
    own, moved = tmp_path / "own.ckpt", tmp_path / "moved.ckpt"
    shutil.copy(teacher, own)
    whole, half = tmp_path / "whole", tmp_path / "half"
    train(small("objective=distil", f"jepa.target.path={own}", run_dir=whole))
    own.rename(moved)
    step = f"ckpt_path={whole / 'checkpoints' / 'step-3.ckpt'}"
    words = ("objective=distil", f"jepa.target.path={moved}", step)
    train(small(*words, run_dir=half))
    assert same(state(whole), state(half))

    shutil.copy(whole / "checkpoints" / "step-3.ckpt", moved)
    with pytest.raises(
        UserError, match=r"different teacher .*file at jepa.target.path has changed"
    ):
        train(small(*words, run_dir=tmp_path / "other"))


def test_no_other_command_opens_the_teacher(small, compose, teacher, answers_here, tmp_path):
    own = tmp_path / "own.ckpt"
    shutil.copy(teacher, own)
    train(small("objective=distil", f"jepa.target.path={own}"))
    own.unlink()
    own.symlink_to("/dev/zero")  # whoever opens it reads for ever
    run = tmp_path / "run"
    evaluate(compose("eval", f"ckpt_path={run}", run_dir=tmp_path / "eval"))
    export(compose("export", f"ckpt_path={run}", "quantization=int8", run_dir=tmp_path / "export"))
    assert jepa_lm.load(str(run)).score("Emma Woodhouse, handsome, clever, and rich") > 0


def test_an_artifact_teaches_as_well(small, compose, teacher, answers_here, tmp_path):
    words = ("quantization=none", f"ckpt_path={teacher}", "temperature=1.5")
    export(compose("export", *words, run_dir=tmp_path / "export"))
    train(small("objective=distil", f"jepa.target.path={tmp_path / 'export'}"))
    assert "artifact" in json.loads((tmp_path / "run/summary.json").read_text())["teacher"]["path"]
    # Hidden states have no temperature; a law that the head reads from them has one.
    with pytest.raises(UserError, match=r"exported with a temperature of 1\.5"):
        train(small("objective=distil_law", f"jepa.target.path={tmp_path / 'export'}"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("jepa.target.dim=32",), "jepa.target.dim=32: .* have width 64; set jepa.target.dim=64"),
        (("data.tokenizer.vocab_size=390",), "the teacher has 400 tokens, this model 390"),
        (("jepa.target.path=nowhere.ckpt",), "^jepa.target.path=nowhere.ckpt: no such file"),
        (("jepa.target.tap=7",), "jepa.target.tap=7: block 7 does not exist"),
        (("jepa.target.path=[1]",), "jepa.target.path"),
    ],
)
def test_mistakes(small, words, message):
    with pytest.raises(UserError, match=message):
        train(small("objective=distil", *words))


def test_taps_and_hinges_are_checked_in_the_teachers_depth_and_width(build):
    """The teacher has three blocks of width 64."""
    build("objective=distil", "model.backbone.layers=2", "jepa.target.tap=2")
    with pytest.raises(UserError, match=r"tap=4: block 4 does not exist, .*0\.\.2"):
        build("objective=distil", "model.backbone.layers=6", "jepa.target.tap=4")
    words = (
        "objective=distil",
        *("model.dim=32", "jepa.target.dim=64", ROPE),
        "+jepa.target.normalisation={_target_: jepa_lm.objective.normalisations.L2}",
    )
    hinge = (
        "{_target_: jepa_lm.objective.regularizers.StdHinge, tensor: target, weight: 1, gamma: %s}"
    )
    build(*words, f"+jepa.regularizers.std={hinge % 0.12}")
    with pytest.raises(UserError, match=r"std of at most 0\.125$"):  # 64^-0.5; 32^-0.5 is 0.177
        build(*words, f"+jepa.regularizers.std={hinge % 0.15}")


def test_another_tokenizer_is_refused_before_training(small, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text(next(Austen().blocks("val")).text[:60_000])
    with pytest.raises(UserError, match="was trained with another tokenizer than this data"):
        train(small("objective=distil", f"data.path={text}"))
    assert not list((tmp_path / "run").glob("checkpoints/*.ckpt"))


def test_only_a_training_opens_a_teacher(small):
    from jepa_lm.training.module import LanguageModelTask
    from jepa_lm.utils.config import resolve

    with pytest.raises(UserError, match=r"only train\.py opens a teacher"):
        LanguageModelTask(resolve(small("objective=distil")))


def test_a_teacher_stays_in_evaluation_and_in_float32(build):
    task = build("objective=distil")
    task.train()
    task.bfloat16()
    teacher = task.objective.target.teacher
    assert not teacher.training
    assert {b.dtype for b in teacher.buffers() if b.is_floating_point()} == {torch.float32}
