"""Training through Lightning: one optimizer, exact resume, clean checkpoints, correct records."""

from __future__ import annotations

import json
from itertools import islice
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback

from jepa_lm.data.datamodule import TokenDataModule
from jepa_lm.run import train
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from jepa_lm.utils.errors import UserError
from tests.runs import Watch, fit, weights


def test_loss_goes_down_on_real_text(small):
    watch = Watch()
    fit(small("trainer.max_steps=40"), watch)
    assert sum(watch.losses[-5:]) / 5 < sum(watch.losses[:5]) / 5 - 0.5


def test_same_seed_same_run_other_seed_other_run(small):
    runs = [Watch() for _ in range(3)]
    for watch, seed in zip(runs, (1, 1, 2), strict=True):
        fit(small(f"seed={seed}"), watch)
    assert runs[0].losses == runs[1].losses
    assert runs[0].losses != runs[2].losses


@pytest.mark.parametrize("order", ["shuffle", "stream"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_goes_on_bit_for_bit(small, tmp_path, order, accumulate):
    common = [f"data.order={order}", f"trainer.accumulate_grad_batches={accumulate}"]
    whole = Watch()
    fit(small("trainer.max_steps=8", *common, run_dir=tmp_path / "whole"), whole)
    first = Watch()
    # the learning rate follows progress, so the first part is planned for 8 steps as well
    cfg = small("trainer.max_steps=8", *common, run_dir=tmp_path / "part")
    clock = ProgressClock(max_steps=8, max_time=None)
    stop = StopAfter(5)
    fit_until(cfg, first, stop, clock)
    second = Watch()
    task = fit(cfg, second, ckpt=tmp_path / "part" / "stopped.ckpt")
    assert len(first.losses) == 5 * accumulate
    assert first.losses + second.losses == whole.losses
    assert task.clock.step == 8
    a = weights(tmp_path / "part" / "checkpoints" / "last.ckpt")
    b = weights(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(a[name], b[name]) for name in b)


class StopAfter(Callback):
    """Stops a run early and leaves a checkpoint, as a cluster's time limit would."""

    def __init__(self, steps: int) -> None:
        self.limit = steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step >= self.limit:
            trainer.should_stop = True


def fit_until(cfg, watch: Watch, stop: StopAfter, clock: ProgressClock) -> None:
    from pathlib import Path

    from jepa_lm.commands import train as training

    config = resolve(cfg)
    pl.seed_everything(config["seed"], verbose=False)
    task = LanguageModelTask(config, clock)
    data = TokenDataModule(instantiate(config["data"], _convert_="all"))
    trainer = training.make_trainer(config, task)
    trainer.callbacks += [watch, stop]
    trainer.fit(task, datamodule=data)
    trainer.save_checkpoint(Path(config["paths"]["run_dir"]) / "stopped.ckpt")


def test_a_run_that_is_done_is_only_scored_again(small, trained, tmp_path):
    got = train(small(f"ckpt_path={trained.folder}"))
    assert got == pytest.approx(trained.bpb, abs=1e-12)


def test_resuming_with_another_model_is_refused(small, trained):
    with pytest.raises(
        UserError, match=r"was trained with a different model\.backbone\.layers \(3, now 4\)"
    ):
        train(small(f"ckpt_path={trained.folder}", "model.backbone.layers=4"))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_no_gradient_survives_a_step(small, accumulate):
    """Gradients that are never zeroed would still count in the clip."""
    watch = Watch()
    fit(
        small(
            f"trainer.accumulate_grad_batches={accumulate}",
            "data.batch_tokens=192",
            "trainer.gradient_clip_val=0.3",
        ),
        watch,
    )
    assert watch.leftovers == []


def test_a_parameter_outside_the_optimizer_would_be_seen(small, monkeypatch):
    """Planted bug: a parameter that the optimizer does not know."""
    configure = LanguageModelTask.configure_optimizers

    def loses_one(self):
        built = configure(self)
        built["optimizer"].param_groups[0]["params"].pop()
        return built

    monkeypatch.setattr(LanguageModelTask, "configure_optimizers", loses_one)
    watch = Watch()
    fit(small(), watch)
    assert watch.leftovers != []


def test_one_optimizer_counts_one_step_and_allows_clip_and_accumulation(small):
    """Manual optimization would refuse both and count each optimizer's steps."""
    watch = Watch()
    task = fit(
        small(
            "trainer.max_steps=5",
            "trainer.accumulate_grad_batches=2",
            "trainer.gradient_clip_val=0.5",
        ),
        watch,
    )
    assert task.automatic_optimization
    assert watch.steps == 5
    assert len(watch.losses) == 10
    assert task.clock.step == 5


def test_accumulated_steps_equal_the_joint_batch(small):
    """Two micro-batches of the shuffled order are the rows of the whole batch."""
    one, two = Watch(), Watch()
    exact = "optimizer.groups.matrices.ns_dtype=float32"
    fit(small(exact), one)
    fit(small(exact, "trainer.accumulate_grad_batches=2"), two)
    for i, loss in enumerate(one.losses):
        assert loss == pytest.approx(sum(two.losses[2 * i : 2 * i + 2]), rel=1e-4)


def test_a_wall_clock_budget_ends_a_run_with_a_validation(small, tmp_path):
    class Time:
        now = 0.0

        def __call__(self):
            self.now += 0.05
            return self.now

    clock = ProgressClock(max_steps=None, max_time=3.0, now=Time())
    watch = Watch()
    cfg = small("trainer.max_steps=null", "trainer.max_time=3", run_dir=tmp_path / "r")
    task = fit(cfg, watch, clock=clock)
    assert 3 < watch.steps < 60
    assert clock.progress == 1.0
    assert task.scores


def test_validation_does_not_use_up_the_budget(small):
    class Time:
        now = 0.0

        def __call__(self):
            return self.now

    time = Time()

    class Slow(Callback):
        def on_train_batch_end(self, *args):
            time.now += 1.0

        def on_validation_batch_end(self, *args):
            time.now += 1000.0

    clock = ProgressClock(max_steps=None, max_time=10.0, now=time)
    watch = Watch()
    cfg = small("trainer.max_steps=null", "trainer.max_time=10", "trainer.val_check_interval=3")
    config = resolve(cfg)
    from jepa_lm.commands import train as training

    task = LanguageModelTask(config, clock)
    trainer = training.make_trainer(config, task)
    trainer.callbacks += [watch, Slow()]
    data = TokenDataModule(instantiate(config["data"], _convert_="all"))
    trainer.fit(task, datamodule=data)
    assert watch.steps in (10, 11)


def test_a_loss_that_is_no_number_stops_the_run(small, tmp_path):
    cfg = small("optimizer.groups.matrices.lr=1e30", "optimizer.groups.embeddings.lr=1e30")
    with pytest.raises(UserError, match=r"gradient is nan at step 2"):
        train(cfg)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_sample_is_shown(small, capsys):
    train(small("sample=true", "sampling.tokens=12", "sampling.prompt=Emma"))
    out = capsys.readouterr().out
    assert "what the model writes" in out
    assert "Emma" in out


def test_z_loss_is_part_of_the_training_loss_alone(small, tmp_path):
    """total = ce + weight * mean(logsumexp^2), scaled together by ce_weight."""
    from jepa_lm.model import token_nll

    clock = ProgressClock(max_steps=1, max_time=None)
    task = LanguageModelTask(resolve(small("z_loss_weight=0.01", "ce_weight=0.5")), clock)
    task.__dict__["_trainer"] = SimpleNamespace(
        world_size=1,
        global_rank=0,
        global_step=0,
        log_every_n_steps=100,
        accumulate_grad_batches=1,
    )
    ids = torch.randint(0, 400, (2, 33))
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:]}
    logits = task.model(batch["inputs"])[0].double()
    lse = torch.log(torch.exp(logits).sum(-1))
    wanted = 0.5 * (token_nll(logits, batch["targets"]).mean() + 0.01 * (lse**2).mean())
    assert task.training_step(batch, 0).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_recurrent_model_writes_from_its_state(compose, monkeypatch):
    """One token a step, and the same text as from passes over everything so far."""
    from jepa_lm.data.tokenizers import ByteTokenizer
    from jepa_lm.evaluation import sampling

    sizes = ("model=mamba2", "model.dim=64", "model.vocab_size=256", "model.backbone.head_dim=16")
    config = resolve(compose("train", *sizes, "model/bigram=xor", "model.smear_gate=true"))
    torch.manual_seed(0)
    model = instantiate(config["model"])
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    settings = dict(prompt="Emma", tokens=20, temperature=0.0, seed=0, context=1000)
    tokenizer = ByteTokenizer(vocab_size=256)
    fed = []
    read_on = sampling.read_on
    monkeypatch.setattr(
        sampling, "read_on", lambda m, ids, s: (fed.append(ids.shape[1]), read_on(m, ids, s))[1]
    )
    streamed = sampling.continued(model, tokenizer, **settings)
    assert fed == [4] + [1] * 19
    monkeypatch.setattr(sampling, "why_not_stream", lambda model: "to compare")
    assert sampling.continued(model, tokenizer, **settings) == streamed
    cold = {**settings, "temperature": 1e-4, "seed": 1}  # nearly certain of the likeliest token
    assert sampling.continued(model, tokenizer, **cold) == streamed
    seen, tail = [], model.tail
    monkeypatch.setattr(model, "tail", lambda ids, n: (seen.append(ids[0]), tail(ids, n))[1])
    start = torch.tensor([[5, 6, 7, 8]])
    drawn = islice(sampling.draws(model, start, temperature=0, seed=0, context=3), 4)
    whole = torch.cat((start[0], *drawn)).tolist()
    assert [ids.tolist() for ids in seen] == [whole[end - 3 : end] for end in range(4, 8)]
