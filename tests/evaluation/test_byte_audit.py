"""The byte audit reports the content of a text; scores divide by the bytes of the text itself."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re

import numpy as np
import pytest
import sentencepiece
import torch

from jepa_lm.artifact import round_trip
from jepa_lm.artifact.loaded_model import load_data, load_model
from jepa_lm.data import documents
from jepa_lm.data.corpora import Austen, TextFiles
from jepa_lm.data.prepare import prepare, prepare_whole
from jepa_lm.data.prepared_folder import SourceText
from jepa_lm.data.shards import ShardWriter
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.token_data import TokenData
from jepa_lm.data.tokenizers import ByteTokenizer, SentencePieceBPE, TokenBytes
from jepa_lm.data.whole_text import WholeText
from jepa_lm.evaluation.baselines import cached_baselines, compressor_baselines
from jepa_lm.evaluation.byte_audit import audit_bytes
from jepa_lm.evaluation.score_table import byte_count_in_words
from jepa_lm.run import evaluate, train

BPE = SentencePieceBPE(vocab_size=400, model=None, train_bytes=200_000)


def stream_of(tmp_path, ids) -> TokenStream:
    with ShardWriter(tmp_path / "s.bin") as shard:
        shard.write(ids)
    return TokenStream([tmp_path / "s.bin"])


def source(text: str) -> SourceText:
    data = text.encode()
    return SourceText(len(data), len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    "tokenizer", [BPE, ByteTokenizer(vocab_size=256), ByteTokenizer(vocab_size=260)]
)
def test_audit_compares_the_table_with_the_decoded_text(cache, tokenizer):
    prepared = prepare(Austen(), tokenizer, cache)
    text = prepared.texts["val"]
    audit = audit_bytes(TokenStream(prepared.val), prepared.tokenizer, text)
    assert audit.matches
    assert audit.lossless
    assert audit.table == audit.decoded == text.bytes == text.counted


class DropsSpaces(ByteTokenizer):
    """A table in which a space counts only after another token, as a decoder drops one that starts a text."""

    def token_bytes(self) -> TokenBytes:
        table = super().token_bytes()
        base, leading_space = table.base.copy(), table.leading_space.copy()
        base[ord(" ")], leading_space[ord(" ")] = 0, True
        return TokenBytes(base, leading_space, table.boundary)


def test_pieces_of_a_text_count_like_the_whole(tmp_path, monkeypatch):
    """The space at the start of a piece comes after the token that ended the piece before."""
    monkeypatch.setattr(documents, "PIECE", 3)
    (tmp_path / "a.txt").write_text("ab cd " * 50)
    tokenizer = DropsSpaces(vocab_size=256)
    shards, text = prepare_whole(WholeText("x", str(tmp_path / "a.txt")), tokenizer, tmp_path / "c")
    audit = audit_bytes(TokenStream(shards), tokenizer, text)
    assert audit.matches
    assert text.counted == audit.table == text.bytes == 300


class Wrong(ByteTokenizer):
    """A table of bytes with two errors that cancel out."""

    def token_bytes(self) -> TokenBytes:
        table = super().token_bytes()
        base = table.base.copy()
        base[4 + ord("a")], base[4 + ord("b")] = 0, 2
        return TokenBytes(base, table.leading_space, table.boundary)


class AfterMark(ByteTokenizer):
    """A table in which an a at the start of a document has no length; everywhere else it has its own."""

    def token_bytes(self) -> TokenBytes:
        table = super().token_bytes()
        parts = (table.base, table.leading_space, table.boundary)
        base, leading_space, boundary = (x.copy() for x in parts)
        base[4 + ord("a")], leading_space[4 + ord("a")], boundary[1] = 0, True, True
        return TokenBytes(base, leading_space, boundary)


@pytest.mark.parametrize(
    ("text", "matches"), [("a text with spaces", False), ("ab ba", False), ("no such letter", True)]
)
def test_errors_of_a_table_that_cancel_out_are_seen(tmp_path, text, matches):
    ids = [1, *ByteTokenizer(vocab_size=260).encode(text).tolist()]
    audit = audit_bytes(stream_of(tmp_path, ids), Wrong(vocab_size=260), None)
    assert audit.matches is matches
    assert audit.lossless is None


def test_a_wrong_document_is_seen_before_a_right_one(tmp_path):
    tokenizer = AfterMark(vocab_size=260)
    wrong, right = ([1, *tokenizer.encode(text).tolist()] for text in ("ab", "ba"))
    assert audit_bytes(stream_of(tmp_path, right), tokenizer, None).matches
    assert not audit_bytes(stream_of(tmp_path, [*wrong, *right]), tokenizer, None).matches


@pytest.mark.parametrize(
    ("text", "lossless"), [("same text", True), ("same size", False), ("same text!", False)]
)
def test_a_text_of_the_same_length_is_not_called_the_same(tmp_path, text, lossless):
    ids = [1, *ByteTokenizer(vocab_size=260).encode("same text").tolist()]
    tokenizer = ByteTokenizer(vocab_size=260)
    audit = audit_bytes(stream_of(tmp_path, ids), tokenizer, source(text))
    assert audit.lossless is lossless
    assert audit.matches
    words = byte_count_in_words(audit.as_dict())
    assert ("which equals the original text" in words) == lossless
    assert ("the tokenizer changes it" in words) == (not lossless)
    assert f"{len(text)} bytes" in words


@pytest.fixture(scope="session")
def lossy(tmp_path_factory):
    """A normalising tokenizer, and a text with a third more bytes than what normalisation leaves of it."""
    folder = tmp_path_factory.mktemp("lossy")
    text = next(Austen().blocks("train")).text[:20_000].replace(" ", "   ").replace("fi", "\ufb01")
    (folder / "text.txt").write_text(text, encoding="utf-8")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n")),
        model_writer=out,
        model_type="bpe",
        vocab_size=400,
        normalization_rule_name="nmt_nfkc",
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "tok.model").write_bytes(out.getvalue())
    return folder


def test_scores_divide_by_the_bytes_of_the_text_itself_everywhere(
    lossy, small, compose, tmp_path, capsys
):
    run = tmp_path / "lossy"
    settings = (f"data.path={lossy}/text.txt", f"data.tokenizer.model={lossy}/tok.model")
    train(small(*settings, "trainer.max_steps=2", run_dir=run))
    corpus = TextFiles(path=f"{lossy}/text.txt", val_path=None, val_fraction=0.05)
    size = {s: sum(len(b.text.encode()) for b in corpus.blocks(s)) for s in ("train", "val")}
    told = f"{size['train']:,} bytes of text to train on, {size['val']:,} ("
    assert told in capsys.readouterr().err
    val = json.loads((run / "summary.json").read_text())["val"]
    assert val["bytes"] == size["val"]
    assert val["bpb"] == pytest.approx(val["nll"] * val["tokens"] / math.log(2) / size["val"])
    with open(run / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["val/bpb"]) == pytest.approx(val["bpb"])

    assert evaluate(compose("eval", f"ckpt_path={run}", "eval.baselines=false")) == pytest.approx(
        val["bpb"]
    )
    audit = json.loads((tmp_path / "run" / "eval.json").read_text())["audit"]
    assert audit["lossless"] is False
    assert audit["source_bytes"] == size["val"] != audit["decoded_bytes"]
    loaded = load_model(str(run), None)
    data = load_data(loaded, {})
    score = round_trip._score(loaded, data, "standard", {"stride": 1, "device": "cpu"})  # exports
    assert score.bpb == pytest.approx(val["bpb"])
    assert score.bytes == size["val"]

    tokens = np.empty(data.streams["train"].total, dtype=np.int64)
    data.streams["train"].read(0, tokens)
    counted = (
        data.split("train").byte_counter()(*map(torch.from_numpy, (tokens[:-1], tokens[1:]))).sum()
    )
    assert counted.item() == pytest.approx(size["train"])
    row = next(row for row in rows if row["train/bpb"])
    per_token = size["train"] / len(tokens)
    assert float(row["train/bpb"]) * per_token == pytest.approx(
        float(row["train/ce"]) / math.log(2), rel=0.15
    )


def data_of(path, cache) -> TokenData:
    data = TokenData(
        corpus=TextFiles(path=str(path), val_path=None, val_fraction=0.1),
        tokenizer=BPE,
        seq_len=8,
        batch_tokens=8,
        val_batch_tokens=8,
        order="stream",
        seed=0,
        cache_dir=str(cache),
    )
    data.setup()
    return data


def test_baselines_are_those_of_the_compressors_on_the_text_itself(small_text, cache):
    import lzma

    import brotli

    data = data_of(small_text, cache)
    text, prefix = data.split("val").first_bytes(5_000), data.split("train").first_bytes(20_000)
    assert (len(text), len(prefix)) == (5_000, 20_000)
    assert text == small_text.read_bytes()[-data.prepared.texts["val"].bytes :][:5_000]
    got = compressor_baselines(text, prefix)
    assert got["xz"] == 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    assert got["brotli"] == 8 * len(brotli.compress(text, quality=11)) / len(text)
    assert got["brotli after the training text"] < got["brotli"]
    assert got["xz after the training text"] < got["xz"]


@pytest.mark.parametrize("damage", ["{", "[1]", '{"xz": 1.0}', None])
def test_remembered_baselines_that_are_damaged_are_found_again(tmp_path, damage):
    text, prefix = b"some words of text" * 9, b"words before" * 9
    found = cached_baselines(text, prefix, tmp_path)
    (path,) = (tmp_path / "baselines").iterdir()
    whole = path.read_text()
    if damage is None:  # no file, and no folder to write one to
        path.unlink()
        (tmp_path / "baselines").rmdir()
        (tmp_path / "baselines").write_text("no folder")
    else:
        path.write_text(damage)
    assert cached_baselines(text, prefix, tmp_path) == found
    assert damage is None or path.read_text() == whole
    assert re.fullmatch(r"[0-9a-f]{20}\.json", path.name)
    assert np.isfinite(list(found.values())).all()
