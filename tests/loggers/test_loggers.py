"""Files of the loggers, read back."""

from __future__ import annotations

import csv
import json

import pytest

from jepa_lm.loggers.metrics_csv import AppendingCSVLogger
from jepa_lm.run import evaluate, train


def test_csv_goes_on_where_another_process_stopped(tmp_path):
    def log(step, **metrics):
        logger = AppendingCSVLogger(save_dir=str(tmp_path))
        logger.log_metrics(metrics, step)
        logger.save()

    log(1, a=1.0)
    log(2, a=2.0)
    log(3, a=3.0, b=9.0)  # a new column rewrites the header and keeps the rows
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["step"], r["a"], r["b"]) for r in rows] == [
        ("1", "1.0", ""),
        ("2", "2.0", ""),
        ("3", "3.0", "9.0"),
    ]


def test_lightnings_own_csv_logger_would_lose_the_rows(tmp_path):
    """The planted bug that our own logger avoids."""
    from lightning.pytorch.loggers import CSVLogger

    for step in (1, 2):
        logger = CSVLogger(str(tmp_path), name="", version="")
        logger.log_metrics({"a": 1.0}, step)
        logger.save()
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1


def test_tensorboard_holds_metrics(small, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small("logger=tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert events.Scalars("val/bpb")[-1].value == pytest.approx(summary["val"]["bpb"], rel=1e-6)
    assert len(events.Scalars("train/loss")) == 3
    text = events.Tensors("summary/text_summary")[0].tensor_proto.string_val[0].decode()
    assert summary["config_hash"] in text
    assert "hp_metric" not in events.Tags()["scalars"]


def test_tensorboard_compares_settings_by_their_score(small, tmp_path):
    plugin_data_pb2 = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small("logger=tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(data).session_start_info
    assert start.hparams["optimizer/groups/matrices/lr"].number_value == 0.02


def test_an_evaluation_writes_its_figures_to_tensorboard(trained, compose, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cheap = ("eval.audit=false", "eval.baselines=false")
    evaluate(compose("eval", f"ckpt_path={trained.folder}", "logger=tensorboard", *cheap))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    text = events.Tensors("summary/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"protocol": "standard"' in text
