"""The embedded novels, users' files in bounded memory, and prepared data on disk."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from jepa_lm.data import text_files
from jepa_lm.data.corpora import Austen, FineWeb, TextFiles
from jepa_lm.data.prepare import prepare
from jepa_lm.data.shards import ShardWriter, open_shard
from jepa_lm.data.token_data import TokenData
from jepa_lm.data.tokenizers import ByteTokenizer, SentencePieceBPE
from jepa_lm.utils.errors import UserError

BPE = SentencePieceBPE(vocab_size=400, model=None, train_bytes=200_000)


def text_corpus(path, val_path=None, fraction=0.1) -> TextFiles:
    return TextFiles(
        path=str(path), val_path=None if val_path is None else str(val_path), val_fraction=fraction
    )


def joined(corpus, split) -> str:
    return "".join(block.text for block in corpus.blocks(split))


def test_austen_split_and_chapters():
    corpus = Austen()
    assert joined(corpus, "val").startswith("Persuasion\nby\nJane Austen\n(1818)\nChapter 1\n")
    assert len(list(corpus.blocks("val"))) == 24  # the novel has 24 chapters
    train = joined(corpus, "train")
    assert train.startswith("EMMA")
    assert "PRIDE AND PREJUDICE" in train
    assert "Sir Walter Elliot" not in train
    chapters = {name: len(Austen.chapters(novel(name))) for name in Austen._names()}
    assert chapters == {
        "emma": 55,
        "mansfieldpark": 48,
        "northangerabbey": 31,
        "persuasion": 24,
        "prideprejudice": 61,
        "sensesensibility": 50,
    }
    assert corpus.size() == len((joined(corpus, "train") + joined(corpus, "val")).encode())


def novel(name: str) -> str:
    import lzma

    return lzma.decompress(Austen._packed(name)).decode()


def test_chapters_joined_are_the_novel():
    for name in Austen._names():
        assert "".join(Austen.chapters(novel(name))) == novel(name)


def test_prepared_austen_holds_every_byte_and_a_bos_per_chapter(cache):
    prepared = prepare(Austen(), BPE, cache)
    tokens = np.concatenate([open_shard(path) for path in prepared.val])
    assert (tokens == prepared.tokenizer.bos_id).sum() == 24
    assert tokens[0] == prepared.tokenizer.bos_id
    assert prepared.tokenizer.decode(tokens.tolist()).decode() == joined(Austen(), "val")
    assert prepared.texts["val"].bytes == len(joined(Austen(), "val").encode())
    again = prepare(Austen(), BPE, cache)
    assert again.train == prepared.train
    assert again.tokenizer.fingerprint == prepared.tokenizer.fingerprint


def test_a_killed_preparation_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    def dies(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jepa_lm.data.prepare.write_manifest", dies)
        with pytest.raises(KeyboardInterrupt):
            prepare(Austen(), ByteTokenizer(vocab_size=260), tmp_path)
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == [".locks"]
    assert prepare(Austen(), ByteTokenizer(vocab_size=260), tmp_path).val


@pytest.mark.parametrize("line_end", ["\n", "\r\n", ""])
def test_one_file_is_cut_at_a_line(tmp_path, line_end):
    path = tmp_path / "a.txt"
    text = "".join(f"line {i} caf\u00e9 \U0001f914{line_end}" for i in range(1000))
    path.write_bytes(text.encode())
    corpus = text_corpus(path)
    train, val = joined(corpus, "train"), joined(corpus, "val")
    assert train + val == text
    assert 0.05 < len(val) / len(text) < 0.15
    if line_end:
        assert train.endswith(line_end)


def test_blocks_are_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 7)
    path = tmp_path / "a.txt"
    text = "\U0001f914\u00e9x" * 40 + "\n" + "short\nlines\n" * 5
    path.write_bytes(text.encode())
    corpus = text_corpus(path)
    blocks = list(corpus.blocks("train"))
    assert [b.starts_document for b in blocks] == [True] + [False] * (len(blocks) - 1)
    assert joined(corpus, "train") + joined(corpus, "val") == text


def test_a_folder_holds_out_its_last_files(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(f"text {i}\n" * 10)
    (tmp_path / "ignored.bin").write_bytes(b"\xff\xfe")
    corpus = text_corpus(tmp_path, fraction=0.2)
    assert "text 9" in joined(corpus, "val")
    assert "text 8" in joined(corpus, "val")
    assert "text 9" not in joined(corpus, "train")
    assert sum(b.starts_document for b in corpus.blocks("train")) == 8


def test_val_path_is_the_validation_split(tmp_path):
    (tmp_path / "a.txt").write_text("training\n" * 9)
    (tmp_path / "b.txt").write_text("validation\n" * 9)
    corpus = text_corpus(tmp_path / "a.txt", tmp_path / "b.txt")
    assert joined(corpus, "train") == "training\n" * 9
    assert joined(corpus, "val") == "validation\n" * 9


@pytest.mark.parametrize("count", [2, 100])
def test_each_jsonl_line_is_a_document(tmp_path, count):
    path = tmp_path / "a.jsonl"
    texts = [f"document {i}\nwith lines \u2581 \u2028 and more" for i in range(count)]
    path.write_text("".join(json.dumps({"text": t, "id": 1}) + "\n" for t in texts))
    corpus = text_corpus(path)
    blocks = [*corpus.blocks("train"), *corpus.blocks("val")]
    assert [b.text for b in blocks] == texts
    assert all(b.starts_document for b in blocks)
    assert len(list(corpus.blocks("val"))) >= 1


def test_a_large_file_is_not_read_whole(tmp_path):
    path = tmp_path / "large.txt"
    line = b"All happy families are alike; each unhappy family is unhappy in its own way.\n"
    with open(path, "wb") as file:
        for _ in range(64):
            file.write(line * 13_600)  # 64 MiB in all
    corpus = text_corpus(path)
    tracemalloc.start()
    seen = sum(len(b.text) for split in ("train", "val") for b in corpus.blocks(split))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == path.stat().st_size
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b"good\n" * 50 + b"bad \xff\n" + b"good\n" * 50, "not UTF-8 at byte 254"),
        ("a.txt", b"x", "too few to hold out"),
        ("a.jsonl", b'{"text": "a"}\n' * 30 + b"{oops\n" * 9, "is not a JSON object"),
        ("a.jsonl", b'{"body": "a"}\n' * 30, 'is not a JSON object with a "text" field'),
        ("a.jsonl", b'{"text": 7}\n' * 30, 'has a "text" that is int, expected a string'),
        ("a.jsonl", b'{"text": "\\ud800"}\n' * 30, "half a surrogate pair"),
        ("a.jsonl", b'{"text": "one document only"}\n', "too few to hold out"),
    ],
)
def test_bad_text_is_one_clear_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)

    def read() -> None:
        corpus = text_corpus(path)
        joined(corpus, "train")
        joined(corpus, "val")

    with pytest.raises(UserError) as caught:
        read()
    assert words in str(caught.value)
    assert "data.path=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.path is not set"):
        TextFiles(path=None, val_path=None, val_fraction=0.1)
    with pytest.raises(UserError, match="no such file or folder"):
        text_corpus(tmp_path / "no")
    with pytest.raises(UserError, match="holds no text"):
        text_corpus(tmp_path)
    (tmp_path / "a.txt").write_text("text\n" * 9)
    with pytest.raises(UserError, match=r"data\.val_path=.*no such"):
        text_corpus(tmp_path / "a.txt", tmp_path / "no")
    with pytest.raises(UserError, match=r"val_fraction=2: expected a number above 0 and below 1"):
        text_corpus(tmp_path / "a.txt", fraction=2)


def fineweb(path, **changes) -> FineWeb:
    settings = dict(
        folder="fineweb10B_byte260",
        tokenizer_file=None,
        train_shards=1,
        path=str(path),
        special_ids=0,
        repo_id="x/y",
        revision="main",
    )
    return FineWeb(**(settings | changes))


def test_shards_on_disk_need_no_network(tmp_path):
    for split in ("train", "val"):
        with ShardWriter(tmp_path / f"fineweb_{split}_000000.bin") as shard:
            shard.write(ByteTokenizer(vocab_size=260).encode("some text " * 50))
    prepared = prepare(fineweb(tmp_path), ByteTokenizer(vocab_size=260), tmp_path / "cache")
    assert [p.name for p in prepared.train] == ["fineweb_train_000000.bin"]
    with pytest.raises(UserError, match=r"train_shards=3: .* holds 1"):
        prepare(fineweb(tmp_path, train_shards=3), ByteTokenizer(vocab_size=260), tmp_path)
    tokenizer = ByteTokenizer(vocab_size=260)
    tokenizer.vocab_size = 100
    with pytest.raises(UserError, match=r"token id 1\d\d at position .*vocab_size=100"):
        prepare(fineweb(tmp_path), tokenizer, tmp_path / "cache")
    with pytest.raises(UserError, match=r"no fineweb_1024_bpe\.model beside the shards"):
        prepare(fineweb(tmp_path, tokenizer_file="fineweb_1024_bpe.model"), BPE, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no fineweb_train_\*\.bin"):
        prepare(fineweb(tmp_path / "empty"), ByteTokenizer(vocab_size=260), tmp_path)


def test_byte260_shards_become_bytes_and_nothing_else(tmp_path):
    text = "two documents, "
    ids = ByteTokenizer(vocab_size=260).encode(text)
    for split in ("train", "val"):
        with ShardWriter(tmp_path / f"fineweb_{split}_000000.bin") as shard:
            shard.write([1, *ids, 1, *ids])
    bytes256 = ByteTokenizer(vocab_size=256)
    corpus, cache = fineweb(tmp_path, special_ids=4), tmp_path / "cache"
    prepared = prepare(corpus, bytes256, cache)
    for path in (*prepared.train, *prepared.val):
        assert bytes256.decode(open_shard(path)) == 2 * text.encode()
    written = {p: p.stat().st_mtime_ns for p in (*prepared.train, *prepared.val)}
    again = prepare(corpus, bytes256, cache)
    assert {p: p.stat().st_mtime_ns for p in (*again.train, *again.val)} == written  # prepared once
    with ShardWriter(tmp_path / "fineweb_train_000000.bin") as shard:
        shard.write([1, 4 + 65])
    assert open_shard(prepare(corpus, bytes256, cache).train[0]).tolist() == [65]  # and again
    with ShardWriter(tmp_path / "fineweb_val_000000.bin") as shard:
        shard.write([1, 1, 3])
    with pytest.raises(UserError, match=r"fineweb_val_000000\.bin holds nothing but ids below 4"):
        prepare(corpus, bytes256, cache)
    with pytest.raises(UserError, match="special_ids=-1: expected a whole number of at least 0"):
        fineweb(tmp_path, special_ids=-1)


def data_of(cache, **changes) -> TokenData:
    settings = dict(
        corpus=Austen(),
        tokenizer=BPE,
        seq_len=64,
        batch_tokens=256,
        val_batch_tokens=512,
        order="shuffle",
        seed=0,
        cache_dir=str(cache),
    )
    return TokenData(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seq_len": 10_000_000}, "data.seq_len=10000000: the training split holds"),
        ({"batch_tokens": 10_000_000}, "data.batch_tokens=10000000: the training split holds"),
        ({"order": "random"}, "order=random: expected one of stream, shuffle"),
        ({"seq_len": 0}, "seq_len=0: expected a whole number of at least 1"),
        (
            {"path": "x.txt"},
            "the embedded corpus reads no files; add data=text, or with debug=tiny",
        ),
    ],
)
def test_data_too_short_is_named(cache, changes, words):
    with pytest.raises(UserError) as caught:
        data_of(cache, **changes).setup()
    assert words in str(caught.value)


def test_a_batch_that_does_not_divide_is_named(cache):
    data = data_of(cache, batch_tokens=256)
    assert data.micro_batch_tokens(world_size=2, accumulate=2) == 64
    with pytest.raises(UserError, match=r"data\.batch_tokens=256: must be a multiple .* = 512"):
        data.micro_batch_tokens(world_size=2, accumulate=4)


def test_an_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir=.*cannot write there"):
        data_of(tmp_path / "file" / "cache").setup()
