"""Values of the right type that are nevertheless refused before anything is built."""

from __future__ import annotations

import copy
import math

import pytest

from jepa_lm.run import train
from jepa_lm.training.startup import check_processor, check_start, tell_limits
from jepa_lm.utils.config import check, resolve
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.paths import CONF
from jepa_lm.utils.values import ELSEWHERE, check_trainer, require_objective


@pytest.fixture(scope="module")
def whole(trained):
    return resolve(trained.config)


def changed(config, key, value) -> dict:
    config = copy.deepcopy(config)
    node = config
    *where, last = key.split(".")
    for part in where:
        node = node[part]
    node[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("seed", -1, "seed=-1: expected a whole number from 0 to 4294967295"),
        ("seed", 2**32, "seed=4294967296: expected a whole number from 0"),
        ("data.seed", -5, r"data\.seed=-5: expected a whole number from 0"),
        ("sampling.seed", 2**64, r"sampling\.seed=\d+: expected a whole number from 0"),
        ("sampling.tokens", -1, r"sampling\.tokens=-1: expected a whole number of at least 0"),
        ("sampling.temperature", -1, r"sampling\.temperature=-1: expected a number of at least 0"),
        ("temperature", -1, "temperature=-1: expected a number above 0 or search"),
        ("ce_weight", -1, "ce_weight=-1: expected a number of at least 0"),
        ("z_loss_weight", math.nan, "z_loss_weight=nan: expected a number of at least 0"),
        ("average.ship", "none", r"average\.ship=none: expected one of auto, raw"),
        ("limits.blocks", 0, r"limits\.blocks=0: expected a whole number of at least 1"),
        ("trainer.max_steps", 0, r"trainer\.max_steps=0: expected a whole number of at least 1"),
        ("trainer.max_time", math.inf, r"trainer\.max_time=inf: expected a number above 0 or null"),
        ("trainer.log_every_n_steps", 0, r"trainer\.log_every_n_steps=0: .* at least 1 or null"),
        ("trainer.val_check_interval", 0, r"trainer\.val_check_interval=0: .* at least 1 or null"),
        ("trainer.gradient_clip_val", -1, r"trainer\.gradient_clip_val=-1: expected a number of"),
        ("trainer.gradient_clip_algorithm", "value", r"algorithm=value: expected norm or null"),
        ("trainer.precision", "fp8", r"trainer\.precision=fp8: expected one of auto, 32-true"),
        ("describe_for", "a100", "describe_for=a100: expected one of h100, h200 or null"),
        ("model.dim", 0, r"model\.dim=0: expected a whole number of at least 1"),
    ],
)
def test_a_value_out_of_its_range_is_refused_before_anything_is_imported(whole, key, value, told):
    check(whole)
    for imports in (True, False):
        with pytest.raises(UserError, match=told):
            check(changed(whole, key, value), imports=imports)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("eval.stride", 0, r"eval\.stride=0: from 1 to data\.seq_len=32"),
        ("eval.stride", 33, r"eval\.stride=33: from 1 to data\.seq_len=32"),
        ("trainer.precision", "16-mixed", r"trainer\.precision=16-mixed: needs a GPU"),
        ("model.kernel", "triton", r"model\.kernel=triton: needs trainer=gpu"),
        ("model.kernel", "mamba_ssm", r"model\.kernel=mamba_ssm: needs trainer=gpu"),
    ],
)
def test_a_value_that_could_only_fail_later_is_refused(whole, key, value, told):
    check_start(whole)
    with pytest.raises(UserError, match=told):
        check_start(changed(whole, key, value))


def test_a_gpu_may_compute_in_float16(whole):
    check_processor(changed(whole, "trainer", {"accelerator": "gpu", "precision": "16-mixed"}))


@pytest.mark.parametrize("key", ELSEWHERE)
def test_settings_of_lightning_that_would_do_something_else_here_are_refused(key):
    """limit_train_batches would train on the same batches again and again."""
    check_trainer({key: None, "max_steps": 5})
    with pytest.raises(UserError, match=rf"trainer\.{key}=2: not used here; \w"):
        check_trainer({key: 2})


def test_a_weight_of_nothing_is_refused_in_a_single_run(small):
    with pytest.raises(
        UserError,
        match=r"jepa\.weight=0\.3: objective=none has no loss to weigh; choose an objective",
    ):
        train(small("objective=none", "jepa.weight=0.3"))
    with pytest.raises(UserError, match=r"jepa\.weight=0\.3: this objective .* is tokens\.weight"):
        train(small("objective=mtp", "jepa.weight=0.3"))
    require_objective({"jepa": {"weight": 0.0}, "tokens": {"weight": 0.0}})
    require_objective({"jepa": {"weight": 0.3, "_target_": "x"}, "tokens": {"weight": 0.0}})


@pytest.mark.parametrize("experiment", sorted(p.stem for p in (CONF / "experiment").glob("*.yaml")))
def test_every_preset_shrinks_to_a_run_that_sliding_windows_can_score(compose, experiment):
    """Two presets used to keep strides of 128 and 512 over windows of 64."""
    config = resolve(compose("train", f"experiment={experiment}", "debug=tiny"))
    check(config)
    check_start(config)
    if not config["data"]["corpus"]["_target_"].endswith("Rows"):  # which read nothing
        austen = {"_target_": "jepa_lm.data.corpora.Austen"}
        assert config["data"]["corpus"] == austen, "it downloads"
    assert config["eval"]["stride"] <= config["data"]["seq_len"] == 64


@pytest.mark.parametrize(
    ("over", "limits", "told"),
    [
        ("time", {"max_steps": 9, "max_time": None}, "so it follows the steps"),
        ("steps", {"max_steps": None, "max_time": 9}, "so it follows the time"),
        ("time", {"max_steps": 9, "max_time": 9}, None),
        ("budget", {"max_steps": 9, "max_time": None}, None),
    ],
)  # fmt: skip
def test_a_schedule_that_follows_another_limit_than_it_says_is_told(capsys, over, limits, told):
    tell_limits({"optimizer": {"schedule": {"lr": {"over": over}}}, "trainer": limits})
    said = capsys.readouterr().err
    if told is None:
        assert said == ""
    else:
        key = f"optimizer.schedule.lr.over={over}: trainer.max_{over} is not set"
        assert f"warning: {key}, {told}" in said
