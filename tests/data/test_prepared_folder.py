"""Prepared data is complete and unchanged, or it is prepared again."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jepa_lm.data import prepare as preparing
from jepa_lm.data import prepared_folder
from jepa_lm.data.corpora import TextFiles
from jepa_lm.data.prepare import Prepared, prepare
from jepa_lm.data.tokenizers import SentencePieceBPE
from jepa_lm.utils import locks
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import BEING_WRITTEN, HOST

BPE = SentencePieceBPE(vocab_size=300, model=None, train_bytes=20_000)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {i} of a text with so many words\n" for i in range(300)))
    return path


def made(text: Path, cache: Path) -> Prepared:
    return prepare(TextFiles(path=str(text), val_path=None, val_fraction=0.1), BPE, cache)


def contents(prepared: Prepared) -> dict[str, str]:
    folder = prepared.train[0].parent
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


FILES = ("corpus.json", "tokenizer.model", "train_000000.bin", "val_000000.bin")
DAMAGE = {
    "gone": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "changed": lambda path: path.write_bytes(path.read_bytes().replace(b"2", b"3")),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again(tmp_path, text, name, damage):
    cache = tmp_path / "cache"
    before = made(text, cache)
    whole = contents(before)
    assert set(whole) == set(FILES)
    path = before.train[0].parent / name
    DAMAGE[damage](path)
    assert path.exists() == (damage != "gone")
    assert contents(made(text, cache)) == whole
    assert sorted(p.name for p in (cache / "prepared").iterdir()) == sorted(
        [path.parent.name, ".locks"]
    )


def test_another_number_of_bytes_of_text_is_noticed(tmp_path, text):
    before = made(text, tmp_path / "cache")
    record = before.train[0].parent / "corpus.json"
    size = f'"bytes": {before.texts["val"].bytes},'
    changed = record.read_text().replace(size, size.replace(" ", " 1"))
    assert changed != record.read_text()
    record.write_text(changed)
    assert made(text, tmp_path / "cache").texts == before.texts


def test_a_cache_that_is_wiped_while_it_is_used_heals(tmp_path, text):
    cache = tmp_path / "cache"
    whole = contents(made(text, cache))
    shutil.rmtree(cache / "prepared")
    assert contents(made(text, cache)) == whole


def test_two_at_once_build_once_and_both_have_it(tmp_path, text, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.01)
    build, built = preparing._build, []

    def slowly(*args):
        built.append(threading.get_ident())
        other.start()
        build(*args)

    monkeypatch.setattr(preparing, "_build", slowly)
    found: list[Prepared] = []
    other = threading.Thread(target=lambda: found.append(made(text, tmp_path / "cache")))
    first = made(text, tmp_path / "cache")
    other.join()
    assert len(built) == 1
    assert contents(found[0]) == contents(first)


def test_what_killed_processes_were_building_is_swept_up_and_what_lives_is_not(tmp_path, text):
    prepared = tmp_path / "cache" / "prepared"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getpid()):
        (prepared / f".{HOST}-{process}-x{BEING_WRITTEN}" / "new").mkdir(parents=True)
    key = made(text, tmp_path / "cache").train[0].parent.name
    alive = f".{HOST}-{os.getpid()}-x{BEING_WRITTEN}"
    assert {path.name for path in prepared.iterdir()} == {key, alive, ".locks"}


def test_a_cache_that_is_closed_to_the_user_is_used_while_it_is_whole(tmp_path, text, monkeypatch):
    cache = tmp_path / "cache"
    before = made(text, cache)

    def closed(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for call in ("touch", "rename", "write_bytes", "write_text", "unlink"):
        monkeypatch.setattr(Path, call, closed)
    monkeypatch.setattr(prepared_folder, "taking_turns", closed)
    assert made(text, cache).train == before.train
    monkeypatch.undo()
    before.train[0].unlink()
    monkeypatch.setattr(prepared_folder, "taking_turns", closed)
    with pytest.raises(
        UserError, match=r"^data\.cache_dir: cannot write to .*prepared \(Read-only"
    ):
        made(text, cache)


def test_text_that_changes_while_it_is_read_is_not_taken(tmp_path, text, monkeypatch):
    build = preparing._build

    def and_changes(*args):
        build(*args)
        with open(text, "a") as file:
            file.write("more\n")

    monkeypatch.setattr(preparing, "_build", and_changes)
    with pytest.raises(UserError, match="the text changed while it was read"):
        made(text, tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache" / "prepared").iterdir()] == [".locks"]
