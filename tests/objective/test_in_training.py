"""Objectives in whole runs: controls, phases, resume, diagnostics, export."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from jepa_lm.checkpoint import inference_model, read_checkpoint
from jepa_lm.config import build as build_node
from jepa_lm.errors import UserError
from jepa_lm.model import token_nll
from jepa_lm.objective.gradients import gradients, norm, reach_table
from jepa_lm.run import export, train
from tests.conftest import Compose
from tests.objective.conftest import (
    DEEP_ENOUGH,
    OBJECTIVES,
    RECIPES,
    at,
    auxiliary,
    compared,
    noise,
    random_batch,
)

NOW = "jepa.schedule=null"
"""The objective from the first step on."""


def state(folder, prefix: str = "") -> dict[str, torch.Tensor]:
    found = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return {n: t for n, t in found.items() if n.startswith(prefix)}


def summary(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


def metrics(folder, column: str) -> list[float]:
    with open(folder / "metrics.csv", newline="") as file:
        return [float(r[column]) for r in csv.DictReader(file) if r.get(column)]


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, small_text):
    """Folders of runs with objective=none, by extra overrides."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from jepa_lm.cli import CONF
    from tests.conftest import SMALL

    runs: dict = {}

    def run(*overrides: str):
        if overrides not in runs:
            folder = tmp_path_factory.mktemp("none")
            GlobalHydra.instance().clear()
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                where = [f"paths.run_dir={folder}", f"data.path={small_text}"]
                train(hydra.compose("train", overrides=[*SMALL, *where, *overrides]))
            runs[overrides] = folder
        return runs[overrides]

    return run


# ---- controls


@pytest.mark.parametrize("name", [o for o in (*OBJECTIVES, *RECIPES) if o != "chunk"])
def test_weight_zero_with_modules_present_is_none_step_for_step(small, plain, tmp_path, name):
    more = DEEP_ENOUGH.get(name, ())
    train(small(f"objective={name}", "jepa.weight=0", *more, run_dir=tmp_path / "zero"))
    assert same(state(tmp_path / "zero", "model."), state(plain(*more), "model."))
    assert summary(tmp_path / "zero")["val"] == summary(plain(*more))["val"]


def test_chunk_has_its_three_controls(small, plain, tmp_path):
    """No module; injection alone; the loss without injection, whose trunk is that of no module."""
    runs = {
        "injection": ("objective=chunk", "jepa.weight=0"),
        "loss": ("objective=chunk_loss_only", NOW, "jepa.weight=0.1"),
        "both": ("objective=chunk", NOW, "jepa.weight=0.1"),
    }
    for name, overrides in runs.items():
        train(small(*overrides, run_dir=tmp_path / name))
    none = state(plain(), "model.")
    injected = state(tmp_path / "injection", "model.injector.")
    start = state(tmp_path / "both", "model.injector.")
    assert same(none, state(tmp_path / "loss", "model."))
    assert injected["model.injector.inject.weight"].any()
    trained = [n for n in injected if not torch.equal(injected[n], start[n])]
    assert "model.injector.project_in.weight" in trained  # the loss trains it, injection does not
    trunk = {n: t for n, t in state(tmp_path / "injection", "model.").items() if n in none}
    assert trunk.keys() == none.keys()
    assert not same(trunk, none)


def test_injection_alone_leaves_projector_and_predictor_at_their_start(small, build, tmp_path):
    overrides = ("objective=chunk", "jepa.weight=0")
    train(small(*overrides, run_dir=tmp_path / "run"))
    torch.manual_seed(1337)
    start = build(*overrides, seed=1337).model.injector.state_dict()
    end = state(tmp_path / "run", "model.injector.")
    moved = {n for n in start if not torch.equal(start[n], end[f"model.injector.{n}"])}
    assert moved == {"inject.weight"}


def test_the_detached_loss_reaches_the_trunk_through_a_shared_clip_alone(small, plain, tmp_path):
    """What systems.md says of #832."""
    clip = "trainer.gradient_clip_val=0.3"
    train(small("objective=chunk_loss_only", NOW, "jepa.weight=10", clip, run_dir=tmp_path / "a"))
    assert not same(state(tmp_path / "a", "model."), state(plain(clip), "model."))


def test_a_weight_under_none_is_said_to_be_inert(small, capsys):
    train(small("objective=none", "jepa.weight=0.3"))
    assert "does nothing with objective=none" in capsys.readouterr().err


# ---- training


@pytest.mark.parametrize("name", [*OBJECTIVES, *RECIPES])
def test_every_parameter_moves_within_two_active_steps(build, name):
    more = ("jepa.ce_schedule=null", *DEEP_ENOUGH.get(name, ()))
    assert moved_nothing(build(f"objective={name}", NOW, *more)) == []


def moved_nothing(task) -> list[str]:
    """Parameters that two steps with an active objective leave where they are."""
    optimizer, _ = task.recipe.configure(task, task.clock)
    before = {n: p.detach().clone() for n, p in task.named_parameters()}
    for step in range(2):
        batch = random_batch(seed=step)
        logits, main = task.model(batch["inputs"], *task.objective.main_needs(task.model))
        aux, _ = task.objective(task.model, batch, main, at(step))
        (token_nll(logits, batch["targets"]).mean() + aux).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [n for n, p in task.named_parameters() if torch.equal(p, before[n])]


@pytest.mark.parametrize("name", [o for o in (*OBJECTIVES, *RECIPES) if o != "vicreg_published"])
def test_every_objective_trains_the_other_backbone(build, name):
    """An objective knows of taps, not of attention: all parameters of Mamba-2 move, too.

    The published mask vector starts at zero, which here takes a third step to leave.
    """
    more = (NOW, "jepa.ce_schedule=null", *DEEP_ENOUGH.get(name, ()))
    assert moved_nothing(build("model=mamba2", f"objective={name}", *more)) == []


def start_norms(build, name) -> dict[str, float]:
    task = build(f"objective={name}", *DEEP_ENOUGH.get(name, ()))
    auxiliary(task, random_batch()).backward()
    return {n: p.grad.norm().item() for n, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [o for o in (*OBJECTIVES, *RECIPES) if o != "vicreg_published"])
def test_gradients_at_the_start_are_finite_and_bounded(build, name):
    """Trap 11."""
    norms = start_norms(build, name)
    assert max(norms.values()) < 100  # false for NaN, too


def test_the_published_mask_vector_starts_with_a_huge_gradient(build):
    """The planted bug: zero before an RMS norm. The published ramp has weight 0 at that step."""
    assert start_norms(build, "vicreg_published")["objective.context.view.vector"] > 1e5


ZERO = "jepa.predictor.output_start=zero"
FROZEN = "optimizer.freeze=['objective.predictor.*']"


def test_a_zero_start_under_l2_is_refused_unless_frozen(build):
    with pytest.raises(UserError, match=r"output_start=zero: .*1e9"):
        build("objective=patch", ZERO)
    build("objective=patch", ZERO, FROZEN)


def test_what_that_start_would_have_done(build):
    """The planted bug of trap 11: the published gradient norm of about 1e9."""
    task = build("objective=patch", ZERO, FROZEN)
    for p in task.parameters():
        p.requires_grad_(True)
    auxiliary(task, random_batch()).backward()
    assert task.objective.predictor.down.weight.grad.norm() > 1e6


def test_the_published_frozen_predictor_is_a_constant_loss_without_gradient(small, plain, tmp_path):
    """#1243 as its script ran: 1/D + .01, and the trunk of objective=none (trap 36)."""
    every = ("jepa.diagnostics.every=2", "trainer.log_every_n_steps=1")
    train(small("objective=patch", ZERO, FROZEN, *every, run_dir=tmp_path / "run"))
    losses = metrics(tmp_path / "run", "jepa/loss")
    assert losses == pytest.approx([1 / 64 + 0.01] * 6, rel=1e-5)
    assert set(metrics(tmp_path / "run", "jepa/trunk_gradient_share")) == {0.0}
    found = summary(tmp_path / "run")
    assert "does not reach the trunk" in found["jepa"]["warnings"][0]
    assert same(state(tmp_path / "run", "model."), state(plain(), "model."))
    assert found["frozen"] == ["objective.predictor.down.weight", "objective.predictor.up.weight"]


# Regularizers are statistics of a micro-batch; without them these are per sequence.
PER_SEQUENCE = {
    "llm_jepa": (),
    "patch": ("jepa.regularizers.std.weight=0",),
    "lewm": ("jepa.regularizers.sigreg.weight=0",),
    "recipes/pr1330": (),
}


@pytest.mark.parametrize("name", PER_SEQUENCE)
def test_accumulating_is_the_joint_batch(build, name):
    """Trap 6."""
    task = build(f"objective={name}", *PER_SEQUENCE[name])
    noise(task)
    batch = random_batch(rows=8)
    joint = gradients(auxiliary(task, batch), task.parameters())
    parts = [{k: v[2 * i : 2 * i + 2] for k, v in batch.items()} for i in range(4)]
    micro = [
        gradients(auxiliary(task, part, at(micro_batch=i)) / 4, task.parameters())
        for i, part in enumerate(parts)
    ]
    for i, want in enumerate(joint):
        torch.testing.assert_close(sum(g[i] for g in micro), want, rtol=1e-4, atol=1e-7)


def test_a_target_kept_from_the_first_micro_batch_would_show(build):
    """The planted bug of trap 6."""
    task = build("objective=llm_jepa")
    noise(task)
    batch = random_batch(rows=8)
    joint = norm(gradients(auxiliary(task, batch), task.parameters()))
    target, kept = task.objective.target, []
    forward = target.forward

    def once(*args):
        kept[:] = kept or [forward(*args)]
        return kept[0]

    target.forward = once
    total = [torch.zeros_like(p) for p in task.parameters()]
    for i in range(4):
        part = {k: v[2 * i : 2 * i + 2] for k, v in batch.items()}
        micro = gradients(auxiliary(task, part) / 4, task.parameters())
        total = [a + b for a, b in zip(total, micro, strict=True)]
    assert norm(total) != pytest.approx(joint.item(), rel=1e-3)


@pytest.mark.parametrize("name", ["vicreg", "lewm", "recipes/pr1330"])
def test_resuming_is_exact(small, tmp_path, name):
    """Weights, copies that follow, draws and schedules: six steps, or the last two again."""
    common = (f"objective={name}", "trainer.log_every_n_steps=1")
    common = (*common, "checkpoint.every_n_steps=4")
    train(small(*common, run_dir=tmp_path / "whole"))
    fourth = tmp_path / "whole" / "checkpoints" / "step-4.ckpt"
    train(small(*common, f"ckpt_path={fourth}", run_dir=tmp_path / "rest"))
    assert same(state(tmp_path / "whole"), state(tmp_path / "rest"))
    assert any("target" in n for n in state(tmp_path / "whole")) or name == "lewm"


def test_copies_move_once_for_each_optimizer_step(small, tmp_path, monkeypatch):
    from jepa_lm.objective.targets import EMA

    steps = []
    monkeypatch.setattr(EMA, "after_step", lambda self, m, p, clock: steps.append(clock.step))
    train(small("objective=vicreg", "trainer.accumulate_grad_batches=4"))
    assert steps == [1, 2, 3, 4, 5, 6]


def test_every_nth_step_leaves_the_others_alone(small, tmp_path):
    constant = "{_target_: jepa_lm.optim.schedule.Constant, value: 1.0}"
    nth = f"{{_target_: jepa_lm.optim.schedule.EveryNth, n: 3, schedule: {constant}}}"
    log = "trainer.log_every_n_steps=1"
    train(small("objective=recipes/pr2142", f"jepa.schedule={nth}", log, run_dir=tmp_path / "run"))
    assert metrics(tmp_path / "run", "jepa/weight") == pytest.approx([0.2, 0, 0, 0.2, 0, 0])
    assert len(metrics(tmp_path / "run", "jepa/loss")) == 2


def test_an_objective_that_is_off_whenever_logs_are_due_is_logged_all_the_same(small, tmp_path):
    constant = "{_target_: jepa_lm.optim.schedule.Constant, value: 1.0}"
    nth = f"{{_target_: jepa_lm.optim.schedule.EveryNth, n: 2, schedule: {constant}}}"
    train(small("objective=recipes/pr2142", f"jepa.schedule={nth}", run_dir=tmp_path / "run"))
    assert metrics(tmp_path / "run", "jepa/weight") == [0, 0, 0]  # logged on steps 1, 3, 5
    assert len(metrics(tmp_path / "run", "jepa/loss")) == 3


def test_stages_train_jepa_alone_then_both_then_cross_entropy(small, tmp_path):
    log = ("trainer.log_every_n_steps=1", "trainer.max_steps=10")
    points = (
        "jepa.schedule.points=[[0.3,1.0],[0.6,0.0]]",
        "jepa.ce_schedule.points=[[0.3,0.0],[0.6,1.0]]",
    )
    train(small("objective=recipes/pr1443", *log, *points, run_dir=tmp_path / "run"))
    total, ce = (metrics(tmp_path / "run", f"train/{n}") for n in ("loss", "ce"))
    aux = metrics(tmp_path / "run", "jepa/loss")
    assert total[:4] == pytest.approx(aux[:4], rel=1e-5)
    assert total[4] == pytest.approx(aux[4] * 2 / 3 + ce[4] / 3, rel=1e-4)
    assert total[6:] == pytest.approx(ce[6:])
    assert len(aux) == 6


def test_reach_stops_the_objective_below_the_last_blocks(build):
    batch = random_batch()
    full = build("objective=lewm")
    noise(full)
    grads = {}
    for reach in ("null", "3", "2", "0"):
        task = build("objective=lewm", f"jepa.reach={reach}")
        task.load_state_dict(full.state_dict())
        names = [n for n, _ in task.named_parameters()]
        loss = auxiliary(task, batch)
        grads[reach] = dict(zip(names, gradients(loss, task.parameters()), strict=True))
        assert loss.item() == pytest.approx(auxiliary(full, batch).item(), rel=1e-5)

    def reached(reach: str) -> set[str]:
        return {n.split(".")[3] for n, g in grads[reach].items() if "blocks" in n and g.any()}

    assert reached("null") == reached("3") == {"0", "1", "2"}
    assert reached("2") == {"1", "2"}
    assert reached("0") == set()
    assert not grads["3"]["model.embedding.table.weight"].any()
    name = "model.backbone.blocks.2.mlp.up.weight"
    torch.testing.assert_close(grads["2"][name], grads["null"][name], rtol=1e-4, atol=1e-7)
    assert grads["0"]["objective.projector.linear.weight"].any()


def test_reach_works_for_other_views_too(build):
    task = build("objective=vicreg", "data.seq_len=64", "jepa.reach=1")
    noise(task)
    assert task.frozen == ["objective.context.view.vector"]  # nothing could train it
    auxiliary(task, random_batch(length=64)).backward()
    blocks = task.model.backbone.blocks
    assert blocks[2].mlp.up.weight.grad.any()
    assert blocks[1].mlp.up.weight.grad is None


# ---- causality (trap 10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("length", [32, 29])
def test_injection_is_causal(build, training, length):
    task = build("objective=chunk")
    noise(task)
    model = task.model.train(training)
    ids = random_batch(length=length)["inputs"]
    before = model(ids)[0]
    for position in (1, 8, 15, 16, 27):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 7) % 400
        after = model(changed)[0]
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=0)
        assert not torch.equal(after[:, position], before[:, position])


def test_an_injection_of_the_own_chunk_would_leak(build):
    """The planted bug: zhat of a chunk made from that chunk's latent."""
    task = build("objective=chunk")
    noise(task)
    model = task.model
    injector = model.injector
    forward = injector.forward

    def leaky(hidden):
        injected = forward(hidden)
        addition = injector.inject(injected.latents).repeat_interleave(injector.chunk, 1)
        return injected._replace(addition=addition)

    injector.forward = leaky
    ids = random_batch()["inputs"]
    before = model(ids)[0]
    changed = ids.clone()
    changed[:, 15] = (changed[:, 15] + 7) % 400
    assert not torch.equal(model(changed)[0][:, :15], before[:, :15])


def test_a_tail_shorter_than_a_chunk_gets_nothing(build):
    task = build("objective=chunk")
    noise(task)
    injected = task.model.encode(task.model.embed(random_batch(length=29)["inputs"])).injected
    assert injected.addition[:, :24].any(-1).all()
    assert not injected.addition[:, 24:].any()


# ---- what a run says


def test_diagnostics_are_logged_on_their_interval(small, tmp_path):
    every = ("jepa.diagnostics.every=4", "jepa.diagnostics.per_layer=true")
    train(small("objective=lewm", *every, run_dir=tmp_path / "run"))
    for name in (
        "cosine",
        "cosine_of_mean",
        "cosine_of_copy",
        "r2",
        "r2_of_copy",
        "effective_rank",
        "target_std_min",
        "target_std_median",
        "target_std_dead",
        "target_covariance_off_diagonal",
        "trunk_gradient_share",
        "trunk_gradient_cosine",
        "block_2_gradient_share",
    ):
        assert len(metrics(tmp_path / "run", f"jepa/{name}")) == 1, name
    assert len(metrics(tmp_path / "run", "jepa/loss")) == 3
    shares = [metrics(tmp_path / "run", f"jepa/{n}_share") for n in ("prediction", "sigreg")]
    total = metrics(tmp_path / "run", "jepa/share")
    assert [a + b for a, b in zip(*shares, strict=True)] == pytest.approx(total, rel=1e-4)
    assert summary(tmp_path / "run")["jepa"]["collapse"] is None


@pytest.mark.parametrize("objective", ["vicreg", "recipes/pr1556"])  # the latter has dropout
def test_measuring_changes_nothing(small, tmp_path, objective):
    for name, every in (("often", 1), ("never", 1000)):
        more = (f"jepa.diagnostics.every={every}", *DEEP_ENOUGH.get(objective, ()))
        train(small(f"objective={objective}", *more, run_dir=tmp_path / name))
    assert same(state(tmp_path / "often"), state(tmp_path / "never"))


def test_gradients_are_compared_as_weighted(build):
    """Half the weight of cross entropy is twice the ratio of the two norms."""
    task = build("objective=lewm", "jepa.weight=0.01")
    noise(task)
    ratios = []
    for weight in (1.0, 0.5, 0.0):
        task.watch.measure(task.model, random_batch(), at(), step=1, ce_weight=weight)
        share = task.watch.figures["trunk_gradient_share"]
        ratios.append(share / max(1 - share, 1e-9))
    assert ratios[1] == pytest.approx(2 * ratios[0], rel=1e-3)
    assert ratios[2] > 1e6


def test_a_frozen_trunk_is_measured_without_it(small, tmp_path):
    frozen = "optimizer.freeze=['model.backbone.*']"
    every = "jepa.diagnostics.every=2"
    train(small("objective=lewm", frozen, every, run_dir=tmp_path / "run"))
    assert metrics(tmp_path / "run", "jepa/r2")
    assert not metrics(tmp_path / "run", "jepa/trunk_gradient_share")


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


def test_the_distance_of_a_copy_is_logged(small, tmp_path):
    train(small("objective=vicreg", "jepa.diagnostics.every=2", run_dir=tmp_path / "run"))
    assert metrics(tmp_path / "run", "jepa/ema_distance")[-1] > 0
    assert metrics(tmp_path / "run", "jepa/target_variance")  # weight 0: measured all the same


def test_collapse_sets_off_the_alarm(small, tmp_path, capsys):
    """No mask, no regularizer, no stop-gradient: a perfect loss, and nothing left to predict."""
    overrides = (
        "objective=lewm",
        "jepa.regularizers.sigreg.weight=0",
        "optimizer.groups.auxiliary.match=[]",  # Muon for projector and predictor, as in #903
        "jepa.diagnostics.every=10",
        "trainer.max_steps=220",
        "trainer.limit_val_batches=1",
    )
    train(small(*overrides, run_dir=tmp_path / "run"))
    found = summary(tmp_path / "run")["jepa"]
    assert found["collapse"]["figure"] == "std_median"
    assert "stop_gradient=false" in found["collapse"]["cause"]
    assert metrics(tmp_path / "run", "jepa/loss")[-1] < 1e-3
    printed = capsys.readouterr()
    assert printed.err.count("warning: collapse at step") == 1
    assert "warning: collapse" in printed.out.replace("\n", " ")


def test_the_alarm_survives_a_resume(small, tmp_path):
    """Two low readings before the checkpoint and one after it are three."""
    overrides = (
        "objective=lewm",
        "jepa.diagnostics.every=2",
        "jepa.diagnostics.min_std=1e9",
        "checkpoint.every_n_steps=4",
    )
    train(small(*overrides, run_dir=tmp_path / "whole"))
    fourth = tmp_path / "whole" / "checkpoints" / "step-4.ckpt"
    train(small(*overrides, f"ckpt_path={fourth}", run_dir=tmp_path / "rest"))
    runs = [summary(tmp_path / name)["jepa"]["collapse"] for name in ("whole", "rest")]
    assert runs[0] == runs[1]
    assert runs[0]["step"] == 6


def test_measuring_is_no_training_time(small, tmp_path, monkeypatch):
    from jepa_lm.objective.watch import Watch

    ran = []

    def measure(self, model, batch, moment, *, step, ce_weight):
        ran.append(moment.clock.running)
        return []

    monkeypatch.setattr(Watch, "measure", measure)
    train(small("objective=lewm", "jepa.diagnostics.every=2", run_dir=tmp_path / "run"))
    assert ran == [False, False, False]
    assert summary(tmp_path / "run")["seconds"] > 0


@pytest.mark.parametrize("added", [("objective=lewm", "jepa.weight=5"), ("z_loss_weight=0.5",)])
def test_validation_holds_no_added_loss(small, tmp_path, added):
    """Trap 16: what a run reports is cross entropy of its model, whatever it was trained with."""
    train(small(*added, run_dir=tmp_path / "run"))
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    data = build_node("data", checkpoint["hyper_parameters"]["config"]["data"])
    data.prepare_data()
    data.setup()
    model, nll, tokens = inference_model(checkpoint), 0.0, 0
    with torch.no_grad():
        windows = data.val_windows()
        for batch in (windows[i] for i in range(len(windows))):
            logits = model(batch["inputs"])[0]
            real = batch["targets"] >= 0
            picked = logits.log_softmax(-1).gather(-1, batch["targets"].clamp(min=0)[..., None])
            nll -= picked[..., 0][real].sum().item()
            tokens += int(real.sum())
    found = summary(tmp_path / "run")["val"]
    assert tokens == found["tokens"]
    assert nll / tokens == pytest.approx(found["nll"], rel=1e-5)


def test_what_is_compiled_is_recorded(small, tmp_path, monkeypatch):
    """Trap 8: arms that differ in it can be told apart, and the wrapper is what really runs."""
    calls = []

    def compiler(function):
        return lambda *a: calls.append(function.__name__) or function(*a)

    monkeypatch.setattr(torch, "compile", compiler)
    train(small("objective=vicreg", "compile=true", run_dir=tmp_path / "run"))
    assert calls == ["_losses"] * 6
    found = summary(tmp_path / "run")
    assert found["compiled"] is True
    assert found["compiled_parts"] == ["main pass", "cross entropy", "objective"]


# ---- export


@pytest.mark.parametrize("name", ["vicreg", "chunk"])
def test_an_artifact_holds_what_inference_needs_and_nothing_else(
    small, compose: Compose, tmp_path, name
):
    train(small(f"objective={name}", run_dir=tmp_path / "run"))
    export(compose("export", f"ckpt_path={tmp_path / 'run'}", run_dir=tmp_path / "export"))
    tensors = {
        t["name"] for t in json.loads((tmp_path / "export" / "export.json").read_text())["tensors"]
    }
    want = {n.removeprefix("model.") for n in state(tmp_path / "run", "model.")}
    assert tensors == want
    assert any(n.startswith("injector.") for n in tensors) == (name == "chunk")


# ---- the reach table


def test_the_reach_table_shows_a_detached_trunk(build):
    chunk, lewm, patch = (build(f"objective={n}") for n in ("chunk", "lewm", "patch"))
    table = reach_table(chunk.model, chunk.objective, 32, [])
    assert table["prediction"]["model.injector"] > 0
    assert all(v == 0 for k, v in table["prediction"].items() if k != "model.injector")
    table = reach_table(lewm.model, lewm.objective, 32, [])
    assert all(v > 0 for v in table["prediction"].values())
    assert table["ce"]["objective.projector"] == 0
    table = reach_table(patch.model, patch.objective, 32, [])
    assert table["std"]["model.backbone.blocks.0"] > 0  # the hinge may be met at the moment
    frozen = build("objective=patch", ZERO, FROZEN)
    table = reach_table(frozen.model, frozen.objective, 32, frozen.frozen)
    assert all(v == 0 for v in table["prediction"].values())


def test_a_zero_output_does_not_hide_the_trunk(build):
    """vicreg's predictor starts at zero; the table is measured on a copy where it does not."""
    task = build("objective=vicreg", "data.seq_len=64")
    before = {n: p.clone() for n, p in task.named_parameters()}
    table = reach_table(task.model, task.objective, 64, [])
    assert table["prediction"]["objective.context"] > 0
    assert table["prediction"]["model.backbone.blocks.0"] > 0
    assert all(torch.equal(p, before[n]) for n, p in task.named_parameters())


# ---- mistakes


MISTAKES = [
    (("objective=vicreg", "data.seq_len=16"), "data.seq_len to 32"),
    (("objective=patch", "jepa.context.pooling.size=7"), "size=7: must divide data.seq_len=32"),
    (("objective=chunk_loss_only", "data.seq_len=20"), "must divide data.seq_len=20"),
    (("objective=lewm", "jepa.context.tap=12"), "block 12 does not exist.*0..2"),
    (("objective=lewm", "jepa.context.tap=fnal"), "jepa.context.tap=fnal: one of final"),
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
    (("objective=vicreg", "jepa.predictor.activation=tanh"), "jepa.predictor: .*activation=tanh"),
    (("objective=recipes/pr1006", "jepa.alignment.offsets=[1,2]"), "offsets=4: .*number agree"),
    (("objective=recipes/pr1312", "jepa.reach=1"), "nothing of the trunk would be trained"),
    (("objective=recipes/pr2142", "+jepa.predictor.output_start=zero"), "3e3"),
    (
        (
            "objective=lewm",
            "+jepa.regularizers.loss={_target_: jepa_lm.objective.regularizers.Covariance, "
            "tensor: context, weight: 1}",
        ),
        "this name is taken",
    ),
    (("objective=lewm", "jepa.diagnostics.every=0"), "diagnostics.every=0"),
    (("objective=vicreg", "jepa.context.view=null"), "SpanMask"),
]


def test_resuming_with_another_objective_of_equal_shape_is_refused(small, tmp_path):
    train(small("objective=none", run_dir=tmp_path / "run"))
    more = ("objective=recipes/pr1116", f"ckpt_path={tmp_path / 'run'}", "trainer.max_steps=9")
    with pytest.raises(UserError, match=r"was trained with another jepa\._target_"):
        train(small(*more))


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_a_mistake_gets_one_clear_line_before_data_is_touched(small, overrides, message):
    from hydra.errors import HydraException

    with pytest.raises((UserError, HydraException), match=message):
        train(small(*(("+" + o) if "weigth" in o else o for o in overrides), "data.path=/nowhere"))


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


def test_objectives_compose_with_any_tokenizer_and_quantization(small, tmp_path):
    for data, vocab in (("bytes256", 256), ("byte260", 260)):
        folder = tmp_path / data
        overrides = (f"data={data}", "data/corpus=text", f"data.tokenizer.vocab_size={vocab}")
        train(small("objective=vicreg", *overrides, "quantization=none", run_dir=folder))
        assert summary(folder)["jepa"]["warnings"] == []


def test_main_pass_is_shared(build, monkeypatch):
    """An objective that needs no second forward costs none."""
    task = build("objective=lewm")
    calls = []
    resume = type(task.model).resume
    monkeypatch.setattr(type(task.model), "resume", lambda s, *a: calls.append(1) or resume(s, *a))
    compared(task, random_batch())
    assert len(calls) == 1
