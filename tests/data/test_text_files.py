"""Your own text: what is read, what is left out and reported, and what serves as validation."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from jepa_lm.data import text_files, text_formats
from jepa_lm.data.corpora import TextFiles
from jepa_lm.data.token_data import TokenData
from jepa_lm.data.tokenizers import ByteTokenizer
from jepa_lm.utils.errors import UserError

LINES = "".join(f"line {i} of a text\n" for i in range(400))
DOCUMENTS = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(40))


def corpus(path, val_path=None, fraction=0.05) -> TextFiles:
    val = None if val_path is None else str(val_path)
    return TextFiles(path=str(path), val_path=val, val_fraction=fraction)


def texts(corpus: TextFiles, split: str) -> list[str]:
    """Return the documents of a split."""
    found: list[str] = []
    for block in corpus.blocks(split):
        found += [""] if block.starts_document else []
        found[-1] += block.text
    return found


@contextmanager
def small_memory(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def in_all(corpus: TextFiles) -> str:
    return "".join(texts(corpus, "train") + texts(corpus, "val"))


def share(corpus: TextFiles) -> float:
    train, val = (sum(map(len, texts(corpus, split))) for split in ("train", "val"))
    return val / (train + val)


def wrote(folder: Path, **files: str | bytes) -> Path:
    """Write a folder of files; in a keyword, `__` becomes a dot and `_in_` a folder."""
    for name, content in files.items():
        path = folder / name.replace("_in_", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.mark.parametrize("how", ["there", "linked", "copied", "hard link"])
def test_validation_text_in_the_training_folder_is_left_out_of_training_and_said(tmp_path, how):
    train, val = tmp_path / "train", tmp_path / "train" / "val" / "held.txt"
    wrote(train, a__txt="words to train on\n" * 9, val_in_held__txt="words held out\n" * 9)
    if how != "there":
        val = tmp_path / "held.txt"
        val.write_bytes((train / "val" / "held.txt").read_bytes())
    if how in ("linked", "hard link"):
        (train / "val" / "held.txt").unlink()
        (os.symlink if how == "linked" else os.link)(val, train / "val" / "other.txt")
    found = corpus(train, val)
    assert texts(found, "train") == ["words to train on\n" * 9]
    assert texts(found, "val") == ["words held out\n" * 9]
    (said,) = found.remarks
    assert said.startswith(f"data.val_path={val}: is also in data.path; left out of training: ")
    with pytest.raises(UserError, match="nothing is left to train on"):
        corpus(val, train)


@pytest.mark.parametrize("small_first", [True, False])
def test_a_folder_holds_out_a_share_of_its_bytes_and_no_whole_large_file(tmp_path, small_first):
    """It once held out 87 %: the last file, whole."""
    names = ["a__txt", "b__txt"] if small_first else ["b__txt", "a__txt"]
    wrote(tmp_path, **dict(zip(names, (LINES[:200], LINES * 4), strict=True)))
    found = corpus(tmp_path)
    assert in_all(found) == (tmp_path / "a.txt").read_text() + (tmp_path / "b.txt").read_text()
    assert share(found) == pytest.approx(0.05, abs=0.005)
    assert texts(found, "train")[-1].endswith("\n")


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("blank", ["", "\n", "\n\n  \n" * 20])
def test_blank_lines_at_the_end_leave_no_empty_split(tmp_path, blank, packed):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packed]
    plain, lines = tmp_path / f"a.txt{packed}", tmp_path / f"a.jsonl{packed}"
    plain.write_bytes(pack(("word " * 500 + blank).encode()))  # one line, cut inside
    assert share(corpus(plain)) >= 0.05
    assert "word" in texts(corpus(plain), "val")[0]
    lines.write_bytes(pack((DOCUMENTS[:-1] + "\n" + blank).encode()))
    assert texts(corpus(lines), "val")[-1] == "document 39"
    assert texts(corpus(lines, fraction=0.001), "val") == ["document 39"]  # at least one
    assert len(texts(corpus(lines, fraction=0.999), "train")) == 1


def test_a_document_is_never_cut_and_a_line_only_where_lines_are_long(tmp_path):
    long = json.dumps({"text": "x" * 5000}) + "\n"
    wrote(tmp_path / "a", a__jsonl=long + DOCUMENTS[:200], b__jsonl=long)
    assert texts(corpus(tmp_path / "a"), "val") == ["x" * 5000]
    wrote(tmp_path / "b", a__txt="short line\n" * 10 + "\u00e9" * 5000)
    assert 0.04 < share(corpus(tmp_path / "b")) < 0.06
    wrote(tmp_path / "c", a__txt="a line of the text\n" * 12)  # an eighth of a line is asked for
    assert texts(corpus(tmp_path / "c", fraction=0.03), "val") == ["a line of the text\n"]


def test_folders_are_read_through_links_without_hidden_files_and_nothing_twice(tmp_path):
    folder = wrote(
        tmp_path / "in",
        b__TXT="B" * 50,
        a__txt="A" * 50,
        sub_in_c__Md="C" * 50,
        __a__txt=b"\xff\x00",
        __ipynb_checkpoints_in_a__txt="HIDDEN",
    )
    elsewhere = wrote(tmp_path / "elsewhere", d__JSONL='{"text": "D"}\n' * 50)
    (folder / "more").symlink_to(elsewhere, target_is_directory=True)
    (folder / "sub" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "z.txt").symlink_to(folder / "a.txt")
    found = corpus(folder)
    assert in_all(found) == "A" * 50 + "B" * 50 + "D" * 50 + "C" * 50
    assert found.remarks == []


def test_what_a_folder_leaves_out_is_named(tmp_path):
    folder = wrote(
        tmp_path,
        a__txt=LINES,
        a__txt__gz=gzip.compress(LINES.encode()),
        b__csv="1,2\n",
        config__json='{"a": 1}',
        part__json__gz=gzip.compress(DOCUMENTS.encode()),
        lines__txt=DOCUMENTS,
        empty__txt="\n",
    )
    (folder / "gone.txt").symlink_to(folder / "nothing")
    found = corpus(folder)
    assert in_all(found) == LINES + DOCUMENTS + "".join(f"document {i}" for i in range(40))
    left_out, doubled, plain = found.remarks
    assert "left out b.csv, config.json, gone.txt; only files that end in" in left_out
    assert "left out a.txt.gz; the uncompressed text is there as well" in doubled
    assert "lines.txt has JSON lines but is read as plain text" in plain


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "A.JSONL", "data.json"])
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressed_text_is_read_as_its_content_is_whatever_the_name(tmp_path, name, pack):
    content = LINES if name == "a.txt" else DOCUMENTS
    for end in ("", ".gz", ".zst"):
        (tmp_path / (name + end)).write_bytes(pack(content.encode()))
        found = corpus(tmp_path / (name + end))
        same = content == LINES or len(texts(found, "train")) == 38
        assert same
        assert 0.04 < share(found) < 0.06
        assert in_all(found) in (LINES, "".join(f"document {i}" for i in range(40)))


@pytest.mark.parametrize(
    "pack", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress]
)
def test_damaged_and_hostile_compressed_files_are_one_line(tmp_path, pack, monkeypatch):
    monkeypatch.setattr(text_formats, "MOST_EXPANDED", 1 << 20)
    path, whole = tmp_path / "a.txt", pack(os.urandom(3000).hex().encode())
    for content, words in (
        (whole[:-5], "damaged or truncated"),
        (whole[:500] + b"zz" + whole[502:], "damaged or truncated"),
        (pack(bytes(1 << 24)), "unpacks to more than 100 times its size"),
        (pack(pack(LINES.encode())), "within a compressed file is not supported"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words) as caught, small_memory(40 << 20):
            in_all(corpus(path))
        assert str(caught.value).startswith(f"data.path={path}: ")


PARQUET = b"PAR1" + bytes(100) + b"PAR1"


@pytest.mark.parametrize(
    ("content", "kind", "way"),
    [
        (PARQUET, "parquet", "read_parquet"),
        (b"BZh91AY&SY" + bytes(9), "bzip2", "bunzip2 -k"),
        (b"\xfd7zXZ\0" + bytes(9), "xz", "unxz -k"),
        (b"PK\x03\x04" + bytes(9), "zip", "unzip"),
        (bytes(257) + b"ustar\0" + bytes(9), "tar", "tar xf"),
        (gzip.compress(bytes(257) + b"ustar\0" + bytes(9), mtime=0), "tar", "tar xf"),
    ],
    ids=["parquet", "bzip2", "xz", "zip", "tar", "tar.gz"],
)
def test_other_formats_are_refused_with_the_command_that_makes_text_of_them(
    tmp_path, content, kind, way
):
    path = wrote(tmp_path, **{"it's__bin": content, "a__txt": LINES}) / "it's.bin"
    with pytest.raises(UserError, match=f"{kind} is not supported; convert it to text: ") as caught:
        corpus(path)
    command = str(caught.value).partition("convert it to text: ")[2]
    assert way in command
    assert str(path) in shlex.split(command.partition(" (after")[0])  # the command can be pasted
    if content[:2] != b"\x1f\x8b":
        with pytest.raises(UserError, match="and move it out of the folder"):
            corpus(tmp_path)
    (tmp_path / "a.md").write_text("PAR1 and BZh and %PDF are letters\n" * 50)
    assert share(corpus(tmp_path / "a.md")) > 0


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (json.dumps([{"text": "a"}, {"text": "b"}], indent=1), 1),
        (json.dumps({"text": "a", "more": 1}, indent=1), 1),
        ("\n".join(['{"text": "a"}'] * 40 + ['{"x": ' + "[" * 9000 + "]" * 9000 + "}"] * 9), 41),
    ],
    ids=["a list", "over several lines", "deep"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_of_another_shape_is_one_line_that_says_what_is_expected(
    tmp_path, content, line, name
):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf": line {line} is not a JSON object") as caught:
        in_all(corpus(tmp_path / name))
    assert "jq -c .[] FILE" in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("path", ""), ("val_path", " "), ("path", "/dev/null")])
def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch, key, value):
    monkeypatch.chdir(wrote(tmp_path, a__txt=LINES))
    settings = {"path": "a.txt", "val_path": None, "val_fraction": 0.1, key: value}
    with pytest.raises(UserError, match=rf"^data\.{key}(: is empty|=/dev/null: is neither)"):
        TextFiles(**settings)


def test_text_is_known_by_its_content(tmp_path, monkeypatch):
    path = wrote(tmp_path, a__txt=LINES) / "a.txt"
    before, times = corpus(path).fingerprint(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.rename(tmp_path / "moved.txt")
    assert corpus(tmp_path / "moved.txt").fingerprint() == before
    assert corpus(tmp_path / "moved.txt", fraction=0.1).fingerprint() != before
    path.write_text(LINES.replace("7", "8"))  # of the same size
    os.utime(path, ns=times)
    assert corpus(path).fingerprint() != before
    monkeypatch.setattr("jepa_lm.data.corpora.HASHED_BYTES", 100)
    large = corpus(path).fingerprint()
    os.utime(path, ns=(1, 1))
    assert corpus(path).fingerprint() != large


def test_a_run_says_the_size_of_each_split_and_warns_of_a_large_one(tmp_path):
    wrote(tmp_path, a__txt="word \u00e9\n" * 900, b__txt="x" * 300 * 8, c__csv="")
    for found, words, cautions in (
        (corpus(tmp_path), "9,120 bytes of text to train on, 480 (5%) to validate on", 1),
        (
            corpus(tmp_path / "a.txt", tmp_path / "b.txt"),
            "7,200 bytes of text to train on, 2,400 (25%) to validate on",
            1,
        ),
    ):
        data = TokenData(
            corpus=found,
            tokenizer=ByteTokenizer(vocab_size=256),
            seq_len=8,
            batch_tokens=8,
            val_batch_tokens=8,
            order="stream",
            seed=0,
            cache_dir=str(tmp_path / "cache"),
        )
        data.setup()
        assert data.in_words() == words
        assert len(data.cautions()) == cautions
    assert data.cautions()[0].startswith("25% of the text is held out for validation")


def test_a_large_compressed_file_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 16)
    path = tmp_path / "large.txt.gz"
    path.write_bytes(gzip.compress(os.urandom(1 << 20).hex().encode(), compresslevel=1))
    with small_memory(3 << 19):
        found = corpus(path)
        sizes = [sum(len(block.text) for block in found.blocks(s)) for s in ("train", "val")]
    assert sum(sizes) == 1 << 21
