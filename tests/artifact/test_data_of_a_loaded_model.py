"""Scoring a model that was trained on many shards downloads only what it needs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from jepa_lm.artifact.loaded_model import load_data
from jepa_lm.data import download
from jepa_lm.data.corpora import Shards
from jepa_lm.data.shards import ShardWriter
from jepa_lm.utils.config import resolve
from jepa_lm.utils.trusted import Trust


def test_one_training_shard_is_enough_to_score(compose, tmp_path, monkeypatch):
    asked = []

    def download_shards(*, train_shards: int, **_: object) -> Shards:
        asked.append(train_shards)
        return Shards([tmp_path / "t.bin"], [tmp_path / "v.bin"])

    for name in ("t.bin", "v.bin"):
        with ShardWriter(tmp_path / name) as shard:
            shard.write(np.full(800_000, 70))
    monkeypatch.setattr(download, "download_shards", download_shards)
    config = resolve(compose("train", "experiment=pr1243_isolation_byte"))
    model = SimpleNamespace(vocab_size=260)
    loaded = SimpleNamespace(
        source=Path("x"),
        model=model,
        data=config["data"],
        tokenizer="byte260",
        trust=Trust(),
        own_tokenizer=lambda: None,
    )
    data = load_data(loaded, {"cache_dir": str(tmp_path / "cache")})
    assert asked == [1]
    assert data.streams["train"].total == 800_000
    on_disk = {"corpus": {**config["data"]["corpus"], "path": str(tmp_path), "train_shards": 2}}
    for name in ("train_0", "train_1", "val_0"):
        (tmp_path / f"fineweb_{name}.bin").symlink_to(tmp_path / "t.bin")
    data = load_data(loaded, {"cache_dir": str(tmp_path / "cache"), **on_disk})
    assert data.streams["train"].total == 1_600_000
