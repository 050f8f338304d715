"""Which finished run tells how long others take, and what it tells."""

from __future__ import annotations

import json
import os

import pytest

from jepa_lm.study.forecast import forecast, known_runs

CONFIG = {
    "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 100, "max_time": None},
    "data": {"batch_tokens": 1000},
    "model": {"backbone": {"_target_": "Transformer"}},
    "compile": None,
}


@pytest.fixture
def ran(tmp_path):
    """ran(name, ...) writes the records of a run that finished, with 10 s of start and validations."""

    def write(name, *, flops=100.0, tokens=100_000, seconds=50.0, status="finished", **trainer):
        folder = tmp_path / name
        folder.mkdir()
        config = CONFIG | {"trainer": CONFIG["trainer"] | trainer}
        (folder / "config.json").write_text(json.dumps(config))
        record = {"flops_per_token": {"model": flops / 2, "objective": flops / 2}}
        record |= {"status": status, "tokens": tokens, "seconds": seconds, "val": {"nll": 3.0}}
        (folder / "summary.json").write_text(json.dumps(record))
        began = (folder / "config.json").stat().st_mtime
        os.utime(folder / "summary.json", (began, began + seconds + 10))
        return folder

    return write


def test_training_grows_with_flops_and_the_rest_stays(ran, tmp_path):
    folder = ran("a")
    for flops, steps in ((100.0, 100), (300.0, 100), (100.0, 300)):
        config = CONFIG | {"trainer": CONFIG["trainer"] | {"max_steps": steps}}
        told = forecast(config, flops, known_runs(tmp_path))
        assert told == (pytest.approx(50 * flops / 100 * steps / 100 + 10, abs=0.1), folder)
    limited = CONFIG | {"trainer": CONFIG["trainer"] | {"max_time": 20}}
    assert forecast(limited, 100.0, known_runs(tmp_path)) == (20, folder)


def test_the_nearest_in_size_budget_and_settings_tells(ran, tmp_path):
    near = ran("near", flops=110.0)
    ran("wider", flops=300.0)
    ran("longer", tokens=900_000)
    ran("failed", status="failed")
    ran("two", devices=2)
    told = forecast(CONFIG, 100.0, known_runs(tmp_path))
    assert told is not None
    assert told[1] == near


def test_another_device_and_a_few_first_steps_tell_nothing(ran, tmp_path):
    assert forecast(CONFIG, 100.0, known_runs(tmp_path)) is None
    ran("gpu", accelerator="gpu")
    ran("huge", flops=500.0)
    brief = ran("brief", tokens=1_000, seconds=2.0)
    assert forecast(CONFIG, 100.0, known_runs(tmp_path)) is None
    small = CONFIG | {"trainer": CONFIG["trainer"] | {"max_steps": 5}}
    told = forecast(small, 100.0, known_runs(tmp_path))
    assert told == (pytest.approx(20.0, abs=0.1), brief)
