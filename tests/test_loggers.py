"""What the loggers leave behind, read back from their files."""

from __future__ import annotations

import csv
import json
import struct
import time

import pytest

from jepa_lm.loggers import AppendingCSVLogger
from jepa_lm.run import train


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
    """The planted bug that our logger exists for."""
    from lightning.pytorch.loggers import CSVLogger

    for step in (1, 2):
        logger = CSVLogger(str(tmp_path), name="", version="")
        logger.log_metrics({"a": 1.0}, step)
        logger.save()
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1


def wandb_records(path) -> list:
    """The records of an offline file: LevelDB's log format after a header of 7 bytes.

    Blocks of 32 KiB hold chunks with a header of crc (4), length (2) and kind (1: whole, 2: first,
    3: middle, 4: last); fewer than 7 bytes at a block's end are padding.
    """
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    records, parts, at = [], b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def test_wandb_offline_holds_metrics_and_config(small, tmp_path):
    wandb = pytest.importorskip("wandb")
    train(small("logger=wandb", "logger.wandb.offline=true", "tags=[a,b]"))
    wandb.finish()
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    history: dict[str, list[float]] = {}
    config: dict[str, object] = {}
    tags: list[str] = []
    deadline = time.monotonic() + 30  # W&B's own process writes the file
    while not any(r.WhichOneof("record_type") == "exit" for r in wandb_records(path)):
        assert time.monotonic() < deadline, "W&B did not finish its file"
        time.sleep(0.2)
    for record in wandb_records(path):
        for item in record.history.item:
            key = item.key or "/".join(item.nested_key)
            history.setdefault(key, []).append(json.loads(item.value_json))
        for update in (record.config, record.run.config):
            for item in update.update:
                config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        tags += record.run.tags
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert history["val/bpb"][-1] == pytest.approx(summary["val"]["bpb"], rel=1e-6)
    assert len(history["train/loss"]) == 3
    assert config["seed"] == 1337
    assert config["optimizer"]["groups"]["matrices"]["lr"] == 0.02
    assert {"a", "b"} <= set(tags)


def test_tensorboard_holds_metrics(small, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small("logger=tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert events.Scalars("val/bpb")[-1].value == pytest.approx(summary["val"]["bpb"], rel=1e-6)
    assert len(events.Scalars("train/loss")) == 3
