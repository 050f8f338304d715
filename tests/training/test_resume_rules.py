"""Facts that a checkpoint depends on are compared when resuming, by the rows of one table."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from jepa_lm.model.checkpoint import read_checkpoint
from jepa_lm.run import train
from jepa_lm.training.resume import UNKNOWN, compare, facts_of_checkpoint
from jepa_lm.training.resume_rules import FREE, LISTED, NO_RULE, REFUSED, RULES, TOLD, rule_of
from jepa_lm.training.run_state import NEEDED, check_run_state
from jepa_lm.utils.config import resolve
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.nested import flat
from jepa_lm.utils.paths import objectives

EXAMPLES = {
    "task_name": FREE,
    "metric": LISTED,
    "tags": FREE,
    "study.name": FREE,
    "paths.run_dir": FREE,
    "logger.csv.save_dir": FREE,
    "callbacks.progress_bar._target_": FREE,
    "checkpoint.keep": FREE,
    "ckpt_path": FREE,
    "describe": FREE,
    "describe_for": FREE,
    "compile": FREE,
    "sample": FREE,
    "sampling.seed": FREE,
    "probe": FREE,
    "eval.stride": FREE,
    "temperature": LISTED,
    "trust": FREE,
    "limits.bytes": FREE,
    "guard.skip": LISTED,
    "average.decay": LISTED,
    "ce_weight": LISTED,
    "z_loss_weight": LISTED,
    "quantization.rules.weights.format.bits": LISTED,
    "data.seq_len": REFUSED,
    "data.batch_tokens": REFUSED,
    "data.order": REFUSED,
    "data.train_tokens": REFUSED,
    "trainer.accumulate_grad_batches": REFUSED,
    "ranks of data.order=stream": REFUSED,
    "tokenizer": REFUSED,
    "training text": REFUSED,
    "validation text": TOLD,
    "data.seed": REFUSED,
    "seed": REFUSED,
    "jepa.regularizers.sigreg.seed": REFUSED,
    "data.noise": LISTED,
    "data.corpus.path": FREE,
    "model.kernel": FREE,
    "model.backbone.layers": REFUSED,
    "teacher": REFUSED,
    "jepa.schedule._target_": LISTED,
    "jepa.target._target_": REFUSED,
    "jepa.weight": LISTED,
    "tokens.view.seed": REFUSED,
    "tokens.schedule._target_": LISTED,
    "tokens.head._target_": REFUSED,
    "tokens.weight": LISTED,
    "tensor model.embedding.table.weight": REFUSED,
    "optimizer.groups.matrices.match": REFUSED,
    "optimizer.groups.matrices.algorithm": REFUSED,
    "optimizer.freeze": REFUSED,
    "optimizer groups": REFUSED,
    "optimizer.groups.matrices.lr": LISTED,
    "stored quantization.training.clip": REFUSED,
    "trainer.precision": TOLD,
    "trainer.max_steps": FREE,
    "trainer.log_every_n_steps": FREE,
    "trainer.enable_progress_bar": FREE,
    "trainer.profiler": FREE,
    "trainer.default_root_dir": FREE,
    "trainer.accelerator": FREE,
    "trainer.devices": FREE,
    "trainer.num_nodes": FREE,
    "trainer.strategy": FREE,
    "trainer.gradient_clip_val": LISTED,
    "a setting of another version": REFUSED,
}
"""A fact for each rule, in their order, and one without a rule."""


@pytest.mark.parametrize(("fact", "then"), EXAMPLES.items())
def test_a_fact_that_differs_is_refused_told_listed_or_free(capsys, fact, then):
    assert compare({fact: 1}, {fact: 1}, "ckpt_path=x") == []
    assert compare({fact: UNKNOWN}, {fact: 1}, "ckpt_path=x") == []
    told = f"ckpt_path=x: was trained with a different {fact} (1, now None); "
    if then == REFUSED:
        with pytest.raises(UserError) as refused:
            compare({fact: 1}, {}, "ckpt_path=x")
        assert str(refused.value).startswith(told)
        assert len(str(refused.value)) > len(told) + 10
    else:
        assert compare({fact: 1}, {}, "ckpt_path=x") == [fact] * (then == LISTED)
    assert (told in capsys.readouterr().err) == (then == TOLD)


def test_each_rule_decides_a_fact_of_its_own():
    """No rule is shadowed by an earlier one, and none is untested."""
    assert [rule_of(fact) for fact in EXAMPLES] == [*RULES, NO_RULE]


@pytest.mark.parametrize("objective", ["none", *objectives()])
def test_every_setting_there_is_has_a_rule(compose, objective):
    config = resolve(compose("train", f"objective={objective}", "logger=many"))
    assert [key for key in flat(config) if rule_of(key) is NO_RULE] == []


MAY_BE = (
    (("averages", "best"), None),
    (("averages", "lr_factor"), None),
    (("loops", "fit_loop"), {"a": 1}),  # Lightning reports it itself, see below
    (("callbacks",), {"a": 1}),  # a callback of the user's that this run does not have
)
"""Values that our check accepts there."""
OTHER = {
    "data.batch_tokens=512": r"different data\.batch_tokens \(256, now 512\); the position in the data",
    "data.order=stream": r"different data\.order \(shuffle, now stream\)",
    "optimizer.freeze=[vector]": r"different optimizer groups \(",
    "objective=vicreg": r"different jepa\._target_ \(None, now jepa_lm",
    "average.decay=0.9": r"different tensor averages\.ema\.",
}


@pytest.mark.parametrize("other", OTHER)
def test_a_run_does_not_go_on_as_another_one(small, trained, other):
    """Resuming with another batch size used to continue at another token, silently."""
    with pytest.raises(UserError, match=OTHER[other]):
        train(small(f"ckpt_path={trained.folder}", other))


def test_another_text_is_seen_wherever_its_file_lies(small, trained, tmp_path, small_text):
    text = small_text.read_text()
    (tmp_path / "same.txt").write_text(text)
    moved = small(f"ckpt_path={trained.folder}", run_dir=tmp_path / "moved")
    moved.data.path = str(tmp_path / "same.txt")
    assert train(moved) == pytest.approx(trained.bpb, abs=1e-12)
    (tmp_path / "other.txt").write_text(text.replace("Emma", "Anne"))
    changed = small(f"ckpt_path={trained.folder}", run_dir=tmp_path / "changed")
    changed.data.path = str(tmp_path / "other.txt")
    with pytest.raises(UserError, match=r"different (tokenizer|training text) \("):
        train(changed)


def test_stored_weights_stay_those_that_the_run_has_trained_on(trained):
    checkpoint = read_checkpoint(trained.checkpoint)
    other = copy.deepcopy(checkpoint)
    other["hyper_parameters"]["config"]["quantization"]["training"]["clip"] = 0.9
    compare(facts_of_checkpoint(checkpoint), facts_of_checkpoint(other), "ckpt_path=x")
    for state in (checkpoint, other):
        state["callbacks"]["QuantizationAwareTraining"] = {"first_step": 3}
    with pytest.raises(
        UserError, match=r"different stored quantization\.training\.clip \(None, now 0\.9\)"
    ):
        compare(facts_of_checkpoint(checkpoint), facts_of_checkpoint(other), "ckpt_path=x")


@pytest.mark.parametrize(
    "where", [*NEEDED, ("optimizer_states", 0, "param_groups"), ("lr_schedulers", 0)]
)
def test_a_checkpoint_of_another_version_is_refused_in_one_line(trained, where):
    checkpoint = copy.deepcopy(read_checkpoint(trained.checkpoint))
    check_run_state(checkpoint, "ckpt_path=x")
    node = checkpoint
    for key in where[:-1]:
        node = node[key]
    for value in (None, [1], 0.5j, {"a": 1}):
        if (where, value) in MAY_BE:
            continue
        node[where[-1]] = value
        with pytest.raises(UserError, match=r"ckpt_path=x: holds no usable .*another version"):
            check_run_state(checkpoint, "ckpt_path=x")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("loops", "fit_loop"), {"a": torch.ones(1, 2)}),
        (("optimizer_states", 0, "state", 0), {"a": torch.ones(1, 2)}),
        (("optimizer_states", 0, "state", 999), {}),
        (("optimizer_states", 0, "state", 0, "step"), torch.ones(3)),
        (("lr_schedulers", 0, "factor"), "x"),
        (("random", "cpu"), torch.zeros(3)),
        (("random", "cpu"), torch.zeros(9, dtype=torch.uint8)),
        (("callbacks",), []),
        (("callbacks", "FiniteGuard"), {"skipped": "x"}),
        (("callbacks", "QuantizationAwareTraining"), {"first_step": [3]}),
        (("callbacks", "QuantizationAwareTraining"), {"another": 3}),
        (("callbacks", "FiniteGuard"), None),
        (("callbacks", "MeasureObjective"), {"figures": 5}),
        (("callbacks", "MeasureObjective"), torch.zeros(3)),
        (("callbacks", "MeasureTokens"), {"figures": 5, "warnings": []}),
        (("callbacks", "TrainingBar"), torch.zeros(3)),
        (("callbacks", "TrainingBar"), {"a": functools.reduce(lambda x, _: [x], range(60), [])}),
        (("watch",), {"figures": 5}),
        (("watch",), {"figures": {}, "warnings": [], "low": {}, "raised": {"a": 1}}),
    ],
)
def test_what_lightning_and_the_optimizer_would_read_is_looked_at(
    small, trained, tmp_path, where, value
):
    checkpoint = read_checkpoint(trained.checkpoint)
    node = checkpoint
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = value
    torch.save(checkpoint, tmp_path / "step-6.ckpt")
    place = "callbacks" if where[0] == "watch" else where[0]  # where it was kept once
    with pytest.raises(UserError, match=rf"holds no usable '{place}"):
        train(small(f"ckpt_path={tmp_path}/step-6.ckpt"))
