"""What `describe=true describe_for=h100` says of a step, and when its table applies."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from jepa_lm.run import train
from jepa_lm.training.estimate import CARDS, estimate, shapes_hash, state_bytes, table
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from jepa_lm.utils.provenance import config_hash
from jepa_lm.utils.schema import Card

PRESETS = [name for name in table() if not name.endswith("_layers")]


@pytest.fixture
def task(small) -> LanguageModelTask:
    return LanguageModelTask(resolve(small("average.decay=0.9", "objective=vicreg")))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_is_of_the_presets_as_they_are(compose, preset):
    """If this fails, trace the preset anew: `python -m benchmarks trace --only PRESET --write`."""
    config = resolve(compose("train", f"experiment={preset}"))
    row = table()[preset]
    assert shapes_hash(config) == row["hash"]
    assert row["tokens"] == config["data"]["batch_tokens"] // 8
    assert row["h100_ms"] == pytest.approx(CARDS["h100"].milliseconds(row), abs=0.06)


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("seed=7", True),
        ("optimizer.groups.matrices.lr=0.1", True),
        ("jepa.diagnostics.min_std=0.5", True),  # measured between steps
        ("model.residual=float32", False),
        ("model.backbone.layers=12", False),
        ("jepa.weight=0", False),
        ("data.batch_tokens=393216", False),
        ("data.seq_len=1024", False),
        ("optimizer.freeze=[embedding]", False),
    ],
)
def test_what_changes_the_shapes_of_a_step(compose, override, same):
    found = [
        shapes_hash(resolve(compose("train", "experiment=pr1243_jepardy", *more)))
        for more in ((), (override,))
    ]
    assert (found[0] == found[1]) == same


def test_a_preset_is_described_by_its_trace(compose, capsys):
    name = "pr1196_llm_jepa"
    train(compose("train", f"experiment={name}", "describe=true", "describe_for=h100"))
    found, row = json.loads(capsys.readouterr().out)["estimate"], table()[name]
    assert (found["gpu"], found["basis"]) == ("h100", "traced")
    assert found["step_ms"] == pytest.approx(row["h100_ms"], abs=0.06)
    assert found["tokens_in_600_s"] == pytest.approx(8 * row["tokens"] * 6e5 / row["h100_ms"], 0.01)
    assert row["saved_gb"] < found["memory_gb"] < row["saved_gb"] + 1
    assert 0 < found["mfu_bound"] < 1


def test_another_config_is_counted(small, capsys):
    train(small("describe=true", "describe_for=h200", "objective=vicreg"))
    found = json.loads(capsys.readouterr().out)["estimate"]
    assert (found["gpu"], found["basis"]) == ("h200", "counted")
    assert found["step_ms"] >= 0


def test_without_a_gpu_nothing_is_estimated(small, capsys):
    train(small("describe=true"))
    assert "estimate" not in json.loads(capsys.readouterr().out)


def test_more_bandwidth_helps(task):
    task.config["data"]["batch_tokens"] = 1 << 20  # small steps round to nothing
    assert estimate(task, "h200")["step_ms"] < estimate(task, "h100")["step_ms"]


def test_state_is_weights_gradients_moments_and_an_average(task):
    groups = task.configure_optimizers()["optimizer"].param_groups
    moments = {"muon": 1, "adamw": 2}
    values = sum((2 + moments[g["algorithm"]]) * p.numel() for g in groups for p in g["params"])
    values += sum(p.numel() for p in task.model.parameters())
    assert state_bytes(task) == 4 * values


def test_the_setting_changes_no_hash_of_a_run(small):
    config = resolve(small())
    former = {key: value for key, value in config.items() if key != "describe_for"}
    assert config_hash(config) == config_hash(former)
    assert config_hash(config) == config_hash({**config, "describe_for": "h100"})


def test_the_cards_are_those_that_a_config_may_name():
    assert set(CARDS) == set(get_args(Card))
