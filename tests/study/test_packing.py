"""A packed study is the same report elsewhere; a file that somebody else made is data within bounds."""

from __future__ import annotations

import json
import re
import stat
import zipfile

import pytest

from jepa_lm.study import __main__ as command
from jepa_lm.study import packing
from jepa_lm.utils.errors import UserError
from tests.study.pages import AGAINST
from tests.study.sweeps import paired, study


@pytest.fixture
def packed(tmp_path):
    folder = study(tmp_path / "mine", paired(1.7, -0.02), against=AGAINST)
    (folder / "0" / "checkpoints").mkdir()
    (folder / "0" / "checkpoints" / "last.ckpt").write_bytes(b"large")
    return packing.pack(folder)


def built(folder) -> str:
    text = (folder / "report.md").read_text()
    return re.sub(r"Built \S+ \S+ \S+", "", text)


def test_the_report_of_a_packed_study_is_that_of_its_folder(packed, tmp_path, capsys):
    assert command.main([str(tmp_path / "mine")]) == 0
    first = packed.read_bytes()
    assert packing.pack(tmp_path / "mine").read_bytes() == first  # equal records, equal bytes
    with zipfile.ZipFile(packed) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {packing.EPOCH}
    away = tmp_path / "away"
    away.mkdir()
    packed = packed.rename(away / "theirs.zip")
    assert command.main([str(packed)]) == 0
    assert built(away / "theirs") == built(tmp_path / "mine")
    assert not list((away / "theirs").rglob("*.ckpt"))
    assert sorted(path.name for path in away.iterdir()) == ["theirs", "theirs.zip"]
    assert command.main([str(packed)]) == 2  # nothing is overwritten
    assert "is there already" in capsys.readouterr().err


def test_a_packed_study_does_not_say_where_it_lay(tmp_path):
    folder = study(tmp_path / "mine", paired(1.7, -0.02), against=AGAINST)
    run = folder / "0"
    config = json.loads((run / "config.json").read_text())
    config["paths"] = {"run_dir": str(run), "cache": "data/cache"}
    (run / "config.json").write_text(json.dumps(config))
    hydra = run / ".hydra" / "hydra.yaml"
    hydra.write_text(hydra.read_text() + f"    cwd: {tmp_path}\n    output_dir: {run}\n")
    summary = json.loads((run / "summary.json").read_text())
    summary["error"] = f"cannot write {run}/metrics.csv"
    (run / "summary.json").write_text(json.dumps(summary))
    with zipfile.ZipFile(packing.pack(folder)) as archive:
        whole = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name, found in whole.items() if str(tmp_path).encode() in found]
    assert json.loads(whole["0/config.json"])["paths"] == {"run_dir": "./0", "cache": "data/cache"}
    assert json.loads(whole["0/summary.json"])["error"] == "cannot write ./0/metrics.csv"
    choices = {"objective": "vicreg", "model": "transformer"}
    assert json.loads(whole["0/.hydra/hydra.yaml"]) == {"hydra": {"runtime": {"choices": choices}}}
    (run / ".hydra" / "hydra.yaml").unlink()
    packing.pack(folder)  # a run that Hydra did not start


def test_the_command_packs(tmp_path, capsys):
    folder = study(tmp_path / "mine", paired(1.7, -0.02), against=AGAINST)
    assert command.main(["export", str(folder)]) == 0
    assert capsys.readouterr().out == f"written to {tmp_path / 'mine.zip'}\n"
    assert command.main(["export", str(tmp_path)]) == 2
    assert "there is no study.json" in capsys.readouterr().err


def added(path, name, content=b"{}", **attributes) -> None:
    entry = zipfile.ZipInfo(name)
    for key, value in attributes.items():
        setattr(entry, key, value)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, content)


@pytest.mark.parametrize(
    "name",
    [
        "../evil/summary.json",
        "/etc/summary.json",
        "0/../../summary.json",
        "0//summary.json",
        "C:\\x/summary.json",
        "0\\summary.json",
        "0/run.py",
        "0/checkpoints/last.ckpt",
        "summary.json",
        "0/\x1b[2J/summary.json",
        "study.json/",
    ],
)
def test_what_is_no_record_is_refused_before_anything_is_written(name, packed, tmp_path):
    added(packed, name)
    target = packed.rename(tmp_path / "theirs.zip")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="is no record of a study"):
        packing.unpack(target)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_is_a_file_with_the_words_of_the_link(packed, tmp_path):
    added(packed, "1/x/summary.json", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16)
    folder = packing.unpack(packed.rename(tmp_path / "theirs.zip"))
    found = folder / "1" / "x" / "summary.json"
    assert not found.is_symlink()
    assert found.read_bytes() == b"/etc/passwd"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_record_that_is_there_twice_is_refused(packed, tmp_path):
    added(packed, "0/summary.json")
    with pytest.raises(UserError, match="is there twice"):
        packing.unpack(packed.rename(tmp_path / "theirs.zip"))


def test_sizes_are_bounded_whatever_a_header_claims(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "MOST_BYTES", 100_000)
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(packed.read_bytes())
    with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1/x/summary.json", bytes(1_000_000))
    with pytest.raises(UserError, match="too large"):
        packing.unpack(bomb)
    lies = bomb.read_bytes().replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    bomb.write_bytes(lies)
    with pytest.raises(UserError, match=r"is not a packed study|too large"):
        packing.unpack(bomb)
    monkeypatch.setattr(packing, "MOST_ENTRIES", 3)
    with pytest.raises(UserError, match="more than 3 records"):
        packing.unpack(packed.rename(tmp_path / "many.zip"))
    assert not (tmp_path / "bomb").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_no_other_compression_is_read(method, packed, tmp_path):
    """The file would choose its reader's memory, and damage would end in an error of that library."""
    added(packed, "1/x/summary.json", compress_type=method)
    with pytest.raises(UserError, match=f"by method {method}; must be stored"):
        packing.unpack(packed.rename(tmp_path / "theirs.zip"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "no zip", "no plan", "encrypted", "misnamed"])
def test_a_damaged_file_is_one_line(damage, packed, tmp_path):
    data = packed.read_bytes()
    path = tmp_path / "theirs.zip"
    path.write_bytes(data)
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(data[:200] + bytes([data[200] ^ 0xFF]) + data[201:])
    elif damage == "no zip":
        path.write_bytes(b"PK" + bytes(100))
    elif damage == "no plan":
        path.unlink()
        added(path, "0/summary.json")
    elif damage == "misnamed":  # a name that says it is UTF-8 and is not
        at = data.index(b"PK\x01\x02")
        path.write_bytes(
            data[: at + 8] + b"\0\x08" + data[at + 10 : at + 46] + b"\xff" + data[at + 47 :]
        )
    else:
        at = data.index(b"PK\x01\x02") + 8
        path.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    with pytest.raises(UserError) as refused:
        packing.unpack(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "theirs").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
