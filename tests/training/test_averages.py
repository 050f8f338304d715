"""Averages of the weights: their values, and that the shipped ones are scored, resumed and exported."""

from __future__ import annotations

import json

import pytest
import torch

from jepa_lm.evaluation.bpb import Score
from jepa_lm.model.checkpoint import inference_model, read_checkpoint
from jepa_lm.run import evaluate, export, train
from jepa_lm.training.averages import AveragedModel, WeightAverages
from jepa_lm.training.validated import ValidatedModule
from jepa_lm.utils.errors import UserError

DECAY = "average.decay=0.5"


def test_it_is_the_recurrence_in_float32():
    online = torch.nn.Linear(3, 4)
    average = AveragedModel(online)
    want = online.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            online.weight += step
        average.move(online, 0.9)
        want = 0.9 * want + 0.1 * online.weight.detach()
    torch.testing.assert_close(average.model.weight, want)
    assert list(average.parameters()) == []
    assert average.to(torch.bfloat16).model.weight.dtype == torch.float32


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_that_never_moves_is_refused(small, decay):
    with pytest.raises(UserError, match=r"^average\.decay=.*: expected a number of at least 0 and"):
        train(small(f"average.decay={decay}"))


@pytest.mark.slow
@pytest.mark.usefixtures("answers_here")
def test_the_average_is_scored_exported_and_resumed(small, compose, tmp_path):
    common = (DECAY, "checkpoint.every_n_steps=4", "objective=lewm")
    train(small(*common, run_dir=tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["val"]["weights"] == "ema"
    assert summary["val"]["raw"]["nll"] != summary["val"]["nll"]
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    state = checkpoint["state_dict"]
    name = "backbone.skip_weights"
    shipped = dict(inference_model(checkpoint).named_parameters())[name]
    assert torch.equal(shipped, state[f"averages.ema.model.{name}"])
    assert not torch.equal(shipped, state[f"model.{name}"])

    evaluate(
        compose("eval", f"ckpt_path={tmp_path / 'run'}", "eval.baselines=false", run_dir=tmp_path)
    )
    scored = json.loads((tmp_path / "eval.json").read_text())
    assert scored["nll"] == pytest.approx(summary["val"]["nll"], rel=1e-5)
    export(compose("export", f"ckpt_path={tmp_path / 'run'}", run_dir=tmp_path / "export"))
    assert json.loads((tmp_path / "export" / "export.json").read_text())["weights"] == "ema"

    fourth = tmp_path / "run" / "checkpoints" / "step-4.ckpt"
    train(small(*common, f"ckpt_path={fourth}", run_dir=tmp_path / "rest"))
    again = read_checkpoint(tmp_path / "rest" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(again[n], state[n]) for n in state)


def test_what_is_written_at_the_end_comes_from_the_weights_that_ship(small, tmp_path, monkeypatch):
    """No place may still use the raw weights."""
    written = []

    def keep(model, *args, **settings):
        written.append({n: t.clone() for n, t in model.state_dict().items()})
        return ""

    monkeypatch.setattr("jepa_lm.training.summary.continued", keep)
    train(small("average.decay=0.5", "sample=true", run_dir=tmp_path / "run"))
    shipped = inference_model(read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt"))
    (of_text,) = written
    assert all(torch.equal(of_text[n], t) for n, t in shipped.state_dict().items())


def test_an_average_changes_no_trained_weight(small, trained, tmp_path):
    train(small(DECAY, run_dir=tmp_path / "run"))
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    plain = read_checkpoint(trained.checkpoint)["state_dict"]
    assert all(torch.equal(state[n], plain[n]) for n in plain)


def test_resuming_without_it_is_refused_in_one_line(small, trained):
    with pytest.raises(UserError, match=r"average.*resume with that run's objective and average"):
        train(small(DECAY, f"ckpt_path={trained.checkpoint}", "trainer.max_steps=9"))


def moved(online, by) -> None:
    with torch.no_grad():
        online.weight += by


def averages(online, **settings):
    return WeightAverages(
        online, **{"decay": None, "swa": True, "swa_every": 1, "ship": "auto", **settings}
    )


def test_the_ema_takes_in_every_step():
    """An average that no step updates would stay a copy of the start."""
    online = torch.nn.Linear(3, 4)
    kept = averages(online, decay=0.9, swa=False)
    want = online.weight.detach().clone()
    for step, factor in enumerate((0.5, 1.0, 1.0, 0.5), 1):
        moved(online, step)
        kept.update(online, step=step, lr_factor=factor)
        want = 0.9 * want + 0.1 * online.weight.detach()
    torch.testing.assert_close(kept.ema.model.weight, want)


def test_swa_is_the_mean_over_the_part_where_the_rate_falls():
    online = torch.nn.Linear(3, 4)
    kept = averages(online)
    factors, taken = [0.5, 1.0, 1.0, 0.8, 0.5, 0.5, 0.2], []
    for step, factor in enumerate(factors, 1):
        moved(online, step)
        kept.update(online, step=step, lr_factor=factor)
        if step >= 4:
            taken.append(online.weight.detach().clone())
    assert kept.taken == 4
    torch.testing.assert_close(kept.swa.model.weight, torch.stack(taken).mean(0))


def test_swa_every_takes_in_every_nth_step():
    online = torch.nn.Linear(3, 4)
    kept = averages(online, swa_every=3)
    taken = []
    for step in range(1, 13):
        moved(online, step)
        kept.update(online, step=step, lr_factor=1 - step / 12)
        if step >= 3 and step % 3 == 0:
            taken.append(online.weight.detach().clone())
    torch.testing.assert_close(kept.swa.model.weight, torch.stack(taken).mean(0))


def test_an_average_that_does_not_exist_yet_is_neither_scored_nor_shipped():
    """A never-updated average must not replace the weights."""
    online = torch.nn.Linear(3, 4)
    kept = averages(online, ship="swa")
    moved(online, 1.0)
    kept.update(online, step=1, lr_factor=1.0)
    assert list(kept.models(online)) == ["raw"]
    assert kept.shipped() == "raw"
    assert kept.models(online)[kept.shipped()] is online
    kept.update(online, step=2, lr_factor=0.5)
    assert kept.shipped() == "swa"


def test_a_run_says_that_raw_weights_were_scored_before_the_mean_began(small, tmp_path):
    """The learning rate never falls, so there is no mean to ship."""
    flat = "optimizer.schedule.lr.fraction=0"
    train(small("average.swa=true", "average.ship=swa", flat, run_dir=tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["val"]["weights"] == "raw"
    assert "swa" not in summary["val"]
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["shipped"] == "raw"


def test_a_never_updated_average_would_be_seen(small, tmp_path, monkeypatch):
    """Planted bug: the average replaces the weights before its first update."""
    monkeypatch.setattr(
        WeightAverages, "models", lambda self, model: {"raw": model, "swa": self.swa.model}
    )
    monkeypatch.setattr(WeightAverages, "shipped", lambda self: "swa")
    with pytest.raises(AssertionError, match="'swa' == 'raw'"):
        test_a_run_says_that_raw_weights_were_scored_before_the_mean_began(small, tmp_path)


def test_the_best_weights_are_those_by_the_metric_and_then_by_the_loss():
    task = ValidatedModule()

    def best(metric, **solved: float) -> str:
        task.metric, kept = metric, averages(torch.nn.Linear(3, 4), decay=0.5, ship="best")
        scores = {"raw": Score(2.0, None, 1, 0, {"solved": solved["raw"]})}
        scores |= {"ema": Score(1.0, None, 1, 0, {"solved": solved["ema"]})}
        kept.choose({name: task._badness(score) for name, score in scores.items()})
        return kept.shipped()

    assert best(None, raw=0.9, ema=0.1) == best("val/nll", raw=0.9, ema=0.1) == "ema"
    assert best("val/solved", raw=0.9, ema=0.1) == "raw"
    assert best("val/solved", raw=0.0, ema=0.0) == "ema"


@pytest.mark.parametrize("ship", ["raw", "ema", "swa", "best"])
def test_all_are_scored_side_by_side_and_the_choice_is_what_ships(small, compose, tmp_path, ship):
    both = ("average.decay=0.5", "average.swa=true", f"average.ship={ship}")
    train(small(*both, "optimizer.schedule.lr.fraction=0.8", run_dir=tmp_path / "run"))
    val = json.loads((tmp_path / "run" / "summary.json").read_text())["val"]
    scores = {name: val[name]["nll"] for name in ("raw", "ema", "swa")}
    assert len(set(scores.values())) == 3
    chosen = min(scores, key=scores.get) if ship == "best" else ship
    assert val["weights"] == chosen
    assert val["nll"] == scores[chosen]
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(path)["shipped"] == chosen
    evaluate(compose("eval", f"ckpt_path={path}", "eval.baselines=false", run_dir=tmp_path))
    scored = json.loads((tmp_path / "eval.json").read_text())
    assert scored["nll"] == pytest.approx(scores[chosen], rel=1e-5)


def test_the_mean_goes_on_after_a_resume(small, tmp_path):
    common = ("average.swa=true", "checkpoint.every_n_steps=1", "checkpoint.keep=9")
    train(small(*common, run_dir=tmp_path / "run"))
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    for step in (2, 3, 4, 5):  # around the step where the mean begins
        path = tmp_path / "run" / "checkpoints" / f"step-{step}.ckpt"
        train(small(*common, f"ckpt_path={path}", run_dir=tmp_path / f"from{step}"))
        again = read_checkpoint(tmp_path / f"from{step}" / "checkpoints" / "last.ckpt")[
            "state_dict"
        ]
        assert all(torch.equal(again[n], state[n]) for n in state)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("average.ship=median", "expected one of auto, raw, ema, swa, best"),
        ("average.ship=ema", "set average.decay"),
        ("average.ship=swa", "set average.swa=true"),
        ("average.swa_every=0", "expected a whole number of at least 1"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(small, setting, words):
    with pytest.raises(UserError, match=f"{setting}: .*{words}"):
        train(small(setting))
