"""Training through Lightning: one optimizer, exact resume, clean checkpoints, honest records."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback

from jepa_lm.checkpoint import inference_model, read_checkpoint
from jepa_lm.config import resolve
from jepa_lm.data.datamodule import TokenDataModule
from jepa_lm.errors import UserError
from jepa_lm.lit import LanguageModelTask
from jepa_lm.optim.clock import ProgressClock
from jepa_lm.run import train


class Watch(Callback):
    """Loss of every micro-batch, gradients left after each step, optimizer steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.leftovers: list[str] = []
        self.steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.steps = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            optimizer = trainer.optimizers[0]
            optimizer.zero_grad()  # what the loop does before the next backward pass
            self.leftovers += [n for n, p in pl_module.named_parameters() if p.grad is not None]


def fit(cfg, watch: Watch | None = None, ckpt=None, clock=None) -> LanguageModelTask:
    """A run with hands on the trainer."""
    from jepa_lm import training

    config = resolve(cfg)
    pl.seed_everything(config["seed"], verbose=False)
    limits = config["trainer"]
    clock = clock or ProgressClock(max_steps=limits["max_steps"], max_time=limits["max_time"])
    task = LanguageModelTask(config, clock)
    data = TokenDataModule(instantiate(config["data"], _convert_="all"))
    trainer = training.make_trainer(config)
    if watch is not None:
        trainer.callbacks.append(watch)
    trainer.fit(task, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return task


def weights(path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def test_loss_goes_down_on_real_text(small):
    watch = Watch()
    fit(small("trainer.max_steps=40"), watch)
    assert sum(watch.losses[-5:]) / 5 < sum(watch.losses[:5]) / 5 - 0.5


def test_summary_holds_what_a_study_needs(trained):
    summary = json.loads((trained.folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["seed"] == 1337
    assert summary["steps"] == 6
    assert summary["tokens"] == 6 * 256
    assert summary["seconds"] > 0
    assert summary["tokens_per_second"] == pytest.approx(summary["tokens"] / summary["seconds"])
    shipped = sum(
        p.numel() for p in inference_model(read_checkpoint(trained.checkpoint)).parameters()
    )
    assert summary["parameters"] == {"shipped": shipped, "training_only": 0}
    assert summary["val"]["bpb"] == trained.bpb
    assert summary["val"]["weights"] == "raw"
    assert summary["compiled"] is False
    assert summary["versions"]["torch"] == torch.__version__
    assert len(summary["config_hash"]) == 16
    assert set(summary["git"]) == {"commit", "dirty", "diff"}
    assert summary["flops_per_token"]["model"] > 6 * shipped * 0.2
    assert summary["flops_per_token"]["objective"] == 0
    assert summary["memory_bytes"] > 4 * shipped


def test_a_run_keeps_the_config_that_it_was_started_with(trained):
    """Trap 27: as resolved, whatever else was read or chosen afterwards."""
    from jepa_lm.records import config_hash

    kept = json.loads((trained.folder / "config.json").read_text())
    assert kept == resolve(trained.config)
    summary = json.loads((trained.folder / "summary.json").read_text())
    assert summary["config_hash"] == config_hash(kept)


def test_the_source_is_known_by_a_hash(trained):
    from jepa_lm.records import source_hash

    summary = json.loads((trained.folder / "summary.json").read_text())
    assert summary["source"] == source_hash()
    assert len(summary["source"]) == 16


def test_uncommitted_changes_are_told_apart_by_a_hash(tmp_path, monkeypatch):
    """Trap 27: commit, whether it is dirty, and a hash of the difference."""
    import jepa_lm
    from jepa_lm.records import git_state

    package = tmp_path / "jepa_lm"
    package.mkdir()
    (package / "__init__.py").write_text("one")

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(jepa_lm, "__file__", str(package / "__init__.py"))
    clean = git_state()
    assert (clean["dirty"], clean["diff"], len(clean["commit"])) == (False, None, 40)
    seen = []
    for text in ("two", "three", "two"):
        (package / "__init__.py").write_text(text)
        seen.append(git_state())
    assert all(state["dirty"] and state["commit"] == clean["commit"] for state in seen)
    assert seen[0] == seen[2] != seen[1]


def test_config_hash_follows_what_is_computed(small):
    from jepa_lm.records import config_hash

    def of(*overrides, **kwargs):
        return config_hash(resolve(small(*overrides, **kwargs)))

    assert of() == of("task_name=other", "tags=[a]", "checkpoint.every_n_steps=7")
    assert of() != of("seed=2")
    assert of() != of("optimizer.groups.matrices.lr=0.5")


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
    """Stops a run early and leaves a checkpoint, as a time limit of a cluster would."""

    def __init__(self, steps: int) -> None:
        self.limit = steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step >= self.limit:
            trainer.should_stop = True


def fit_until(cfg, watch: Watch, stop: StopAfter, clock: ProgressClock) -> None:
    from pathlib import Path

    from jepa_lm import training

    config = resolve(cfg)
    pl.seed_everything(config["seed"], verbose=False)
    task = LanguageModelTask(config, clock)
    data = TokenDataModule(instantiate(config["data"], _convert_="all"))
    trainer = training.make_trainer(config)
    trainer.callbacks += [watch, stop]
    trainer.fit(task, datamodule=data)
    trainer.save_checkpoint(Path(config["paths"]["run_dir"]) / "stopped.ckpt")


def test_a_run_resumed_in_its_folder_keeps_its_metrics(small, tmp_path):
    run_dir = tmp_path / "run"
    train(small("trainer.max_steps=4"))
    before = rows(run_dir)
    train(small("trainer.max_steps=8", f"ckpt_path={run_dir}"))
    after = rows(run_dir)
    assert [r["train/ce"] for r in before] == [r["train/ce"] for r in after[: len(before)]]
    assert len(after) > len(before)
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 8


def rows(run_dir) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_that_is_done_is_only_scored_again(small, trained, tmp_path):
    got = train(small(f"ckpt_path={trained.folder}"))
    assert got == pytest.approx(trained.bpb, abs=1e-12)


def test_resuming_with_another_model_is_refused(small, trained):
    with pytest.raises(
        UserError, match=r"was trained with another model\.backbone\.layers \(3, now 4\)"
    ):
        train(small(f"ckpt_path={trained.folder}", "model.backbone.layers=4"))


def test_metrics_have_the_promised_names(trained):
    names = set(rows(trained.folder)[0])
    assert {"train/loss", "train/ce", "train/bpb", "val/nll", "val/bpb", "step"} <= names
    assert "train/tokens_per_second" in names
    assert any(name.startswith("lr-") for name in names)
    last = [r for r in rows(trained.folder) if r["val/bpb"]][-1]
    assert float(last["val/bpb"]) == pytest.approx(trained.bpb, rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_no_gradient_survives_a_step(small, accumulate):
    """Trap 2: a parameter that nobody zeroes would still count in the clip."""
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
    """The planted bug of trap 2."""
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
    """Trap 30: manual optimization would refuse both and count each optimizer's steps."""
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


def test_checkpoints_hold_plain_containers_only(trained):
    """Trap 31: a DictConfig would make this load fail."""
    checkpoint = torch.load(trained.checkpoint, weights_only=True)
    assert type(checkpoint["hyper_parameters"]["config"]) is dict
    json.dumps(checkpoint["hyper_parameters"]["config"])
    loaded = LanguageModelTask.load_from_checkpoint(trained.checkpoint, weights_only=True)
    assert loaded.config["seed"] == 1337


def test_a_dictconfig_in_a_checkpoint_would_be_seen(trained, tmp_path):
    """The planted bug of trap 31."""
    checkpoint = torch.load(trained.checkpoint, weights_only=True)
    checkpoint["hyper_parameters"]["config"] = trained.config
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="more than tensors and plain values"):
        read_checkpoint(tmp_path / "bad.ckpt")


def test_a_wrapped_module_would_be_seen(small, tmp_path, monkeypatch):
    """The planted bug of trap 32: compiling the module by wrapping it renames its keys."""
    setup = LanguageModelTask.setup

    def wraps(self, stage):
        setup(self, stage)
        self.model = torch.compile(self.model, backend="eager")

    monkeypatch.setattr(LanguageModelTask, "setup", wraps)
    fit(small("trainer.max_steps=3"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert [k for k in weights(path) if "_orig_mod" in k]
    with pytest.raises(RuntimeError, match="_orig_mod"):
        inference_model(read_checkpoint(path))


def test_compiled_runs_have_clean_keys_and_load_either_way(small, tmp_path, monkeypatch):
    """Trap 32: no `_orig_mod.` in a checkpoint."""
    compiled = []
    monkeypatch.setattr(
        torch, "compile", lambda f: compiled.append(f) or torch._dynamo.optimize("eager")(f)
    )
    watch = Watch()
    fit(small("compile=true", "trainer.max_steps=4", run_dir=tmp_path / "a"), watch)
    assert len(compiled) == 1
    path = tmp_path / "a" / "checkpoints" / "last.ckpt"
    assert not [k for k in weights(path) if "_orig_mod" in k]
    inference_model(read_checkpoint(path))
    eager, again = Watch(), Watch()
    fit(small("trainer.max_steps=7", run_dir=tmp_path / "b"), eager, ckpt=path)
    fit(small("compile=true", "trainer.max_steps=7", run_dir=tmp_path / "c"), again, ckpt=path)
    assert eager.losses == pytest.approx(again.losses, rel=1e-5)


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
    from jepa_lm import training

    task = LanguageModelTask(config, clock)
    trainer = training.make_trainer(config)
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


def test_describe_trains_nothing_and_prints_json_only(small, capsys, tmp_path):
    assert train(small("describe=true", "optimizer.freeze=[model.bigram.*]")) is None
    described = json.loads(capsys.readouterr().out)
    assert described["tokens_per_step"] == 256
    assert described["parameters"]["training_only"] == 0
    assert "model.bigram.scale" in described["optimizer"]["frozen"]
    assert described["schedules"]["lr"][0] == {"constant": 1.0, "until": 0.5}
    listed = [n for g in described["optimizer"]["groups"].values() for n in g["parameters"]]
    assert len(listed) == len(set(listed))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_flops_count_matrices_and_attention(small):
    from jepa_lm.describe import model_flops_per_token

    model = instantiate(resolve(small())["model"])
    D, T, V, L = 64, 32, 400, 3
    weights_ = L * (D * D * 2 + 2 * D * D // 2 + 2 * 3 * D * D) + V * D + 64 * D
    assert model_flops_per_token(model, T) == 6 * weights_ + 3 * L * 2 * T * D


def test_flops_of_mamba2_count_matrices_and_the_scan(compose):
    from jepa_lm.describe import model_flops_per_token

    sizes = ("model.dim=64", "model.vocab_size=400", "model.embedding.factor_dim=32")
    config = resolve(compose("train", "model=mamba2", "model.backbone.layers=3", *sizes))
    D, N, V, L = 64, 64, 400, 3
    mixers = L * (D * (2 * D + 2 * N + 1) + D * D)
    weights_ = mixers + 2 * (2 * 4 * D * D) + V * 32 + 2 * 32 * D
    scan = L * (2 * 32 * (N + D) + 4 * D * N)  # a chunk is as long as the sequence of 32
    model = instantiate(config["model"])
    assert model_flops_per_token(model, 32) == 6 * weights_ + 3 * scan


def test_z_loss_is_part_of_the_training_loss_alone(small, tmp_path):
    """total = ce + weight * mean(logsumexp^2), scaled together by ce_weight."""
    from jepa_lm.model import token_nll

    clock = ProgressClock(max_steps=1, max_time=None)
    task = LanguageModelTask(resolve(small("z_loss_weight=0.01", "ce_weight=0.5")), clock)
    task.__dict__["_trainer"] = SimpleNamespace(
        world_size=1, global_step=0, log_every_n_steps=100, accumulate_grad_batches=1
    )
    ids = torch.randint(0, 400, (2, 33))
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:]}
    logits = task.model(batch["inputs"])[0].double()
    lse = torch.log(torch.exp(logits).sum(-1))
    wanted = 0.5 * (token_nll(logits, batch["targets"]).mean() + 0.01 * (lse**2).mean())
    assert task.training_step(batch, 0).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_recurrent_model_writes_from_its_state(compose, monkeypatch):
    """One token a step, and the same text as from passes over everything so far."""
    from jepa_lm import sampling
    from jepa_lm.data.tokenizers import ByteTokenizer

    sizes = ("model=mamba2", "model.dim=64", "model.vocab_size=256", "model.backbone.head_dim=16")
    config = resolve(compose("train", *sizes, "model/bigram=xor", "model.smear_gate=true"))
    torch.manual_seed(0)
    model = instantiate(config["model"])
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    settings = dict(prompt="Emma", tokens=20, temperature=0.0, seed=0, context=1000)
    tokenizer = ByteTokenizer(vocab_size=256)
    fed = []
    stream = model.stream
    monkeypatch.setattr(
        model, "stream", lambda ids, s: (fed.append(ids.shape[1]), stream(ids, s))[1]
    )
    streamed = sampling.sample_text(model, tokenizer, **settings)
    assert fed == [4] + [1] * 19
    monkeypatch.setattr(model, "why_not_stream", lambda: "to compare")
    assert sampling.sample_text(model, tokenizer, **settings) == streamed


def test_a_checkpoint_without_its_run_folder_still_evaluates(trained, compose, tmp_path):
    from jepa_lm.run import evaluate

    moved = tmp_path / "elsewhere.ckpt"
    shutil.copy(trained.checkpoint, moved)
    got = evaluate(compose("eval", f"ckpt_path={moved}", "eval.baselines=false"))
    assert got == pytest.approx(trained.bpb, abs=1e-6)
