"""`data=fineweb_*` from the first download to a score, against a hub on the loopback interface."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jepa_lm.data.corpora import Austen
from jepa_lm.data.shards import ShardWriter
from jepa_lm.data.tokenizers import ByteTokenizer, SentencePieceTokenizer
from jepa_lm.run import train
from tests.data.hub_server import HubServer
from tests.tokenizers import published_bpe

SIZES = [
    "data.seq_len=64",
    "data.batch_tokens=512",
    "data.val_batch_tokens=2048",
    "model.dim=64",
    "model.backbone.layers=2",
    "model.backbone.heads=4",
    "model.backbone.kv_heads=2",
    "trainer.max_steps=3",
    "trainer.log_every_n_steps=1",
    "trainer.precision=32-true",
    "sample=false",
]


def shard_bytes(tmp_path, tokenizer, split) -> bytes:
    blocks = Austen().blocks(split)
    with ShardWriter(tmp_path / "shard.bin") as shard:
        for _ in range(3):
            shard.write([tokenizer.bos_id])
            shard.write(tokenizer.encode(next(blocks).text))
    return (tmp_path / "shard.bin").read_bytes()


@pytest.mark.parametrize("kind", ["sp1024", "byte260"])
def test_download_train_and_score(compose, tmp_path, monkeypatch, kind):
    files = {}
    if kind == "sp1024":
        model = published_bpe()
        files["datasets/tokenizers/fineweb_1024_bpe.model"] = model
        tokenizer = SentencePieceTokenizer(model, vocab_size=1024, source="test")
    else:
        tokenizer = ByteTokenizer(vocab_size=260)
    for split in ("train", "val"):
        name = f"datasets/datasets/fineweb10B_{kind}/fineweb_{split}_000000.bin"
        files[name] = shard_bytes(tmp_path, tokenizer, split)
    settings = [f"data=fineweb_{kind}", *SIZES, f"data.cache_dir={tmp_path}/cache"]
    with HubServer(files) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        first = train(compose("train", *settings))
    again = train(
        compose("train", *settings, run_dir=tmp_path / "again")
    )  # the server is gone, the shards are there
    assert first == again
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    val = np.frombuffer(files[name][1024:], dtype="<u2")
    assert summary["val"]["tokens"] == len(val) - 1
    chapters = np.split(val, np.flatnonzero(val == tokenizer.bos_id)[1:])
    text = b"".join(tokenizer.decode(c.tolist()) for c in chapters)
    assert summary["val"]["bytes"] == len(text)
