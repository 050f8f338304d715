"""Following metrics.csv: what is appended, torn, replaced, damaged or huge."""

from __future__ import annotations

import os

import pytest

from jepa_lm.live import metrics
from jepa_lm.live.metrics import BLOCK, DRAWN, Column, Followed


def points(followed: Followed, name: str = "train/bpb") -> list[tuple[int, float]]:
    followed.read()
    column = followed.columns.get(name, Column())
    return list(zip(column.steps, column.values, strict=True))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/bpb,val/bpb\r\n,9,2.5,\r\n0,9,,2.75\r\n")
    return path


def append(path, text: str) -> None:
    with open(path, "a", newline="") as file:
        file.write(text)


def test_only_what_was_appended_is_read(path, monkeypatch):
    followed = Followed(path)
    assert points(followed) == [(10, 2.5)]
    assert points(followed, "val/bpb") == [(10, 2.75)]
    read = []
    monkeypatch.setattr(Followed, "_line", lambda self, line: read.append(line))
    append(path, ",19,2.25,\r\n")
    followed.read()
    followed.read()
    assert read == [b",19,2.25,\r"]


def test_a_line_that_is_being_written_waits(path):
    followed = Followed(path)
    append(path, ",19,2.")
    assert points(followed) == [(10, 2.5)]
    append(path, "25,\r\n,29")
    assert points(followed) == [(10, 2.5), (20, 2.25)]
    assert followed.step == 20


def test_lines_that_do_not_fit_are_left_out(path):
    damaged = (",19", ",x,2.0,", ",29,nan,", ",39,1e999,", ",49,2.0,,,", "\x00\xff", ",-5,2.0,")
    append(path, "".join(f"{line}\r\n" for line in damaged) + ",59,2.0,\r\n")
    assert points(Followed(path)) == [(10, 2.5), (60, 2.0)]


def test_a_file_that_a_resume_replaced_is_read_anew(path, tmp_path):
    followed = Followed(path)
    append(path, ",19,2.25,\r\n,29,2.0,\r\n")
    assert points(followed) == [(10, 2.5), (20, 2.25), (30, 2.0)]
    other = tmp_path / "other"
    other.write_text("jepa/loss,step,train/bpb\r\n0.5,9,2.5\r\n0.25,19,2.125\r\n")
    os.replace(other, path)
    assert points(followed) == [(10, 2.5), (20, 2.125)]
    assert points(followed, "jepa/loss") == [(10, 0.5), (20, 0.25)]
    assert "val/bpb" not in followed.columns


def test_another_file_of_the_same_inode_is_noticed(path):
    followed = Followed(path)
    followed.read()
    longer = path.read_text().replace("2.75", "2.25") + ",19,2.0,\n"
    with open(path, "r+") as file:  # in place, as a file system may give a new file the old number
        file.write(longer)
    assert points(followed, "val/bpb") == [(10, 2.25)]


def test_a_shorter_file_and_none(path):
    followed = Followed(path)
    followed.read()
    path.write_text("step,train/bpb\n")
    assert points(followed) == []
    append(path, "9,3.0\n")
    assert points(followed) == [(10, 3.0)]
    path.unlink()
    assert points(followed) == []


def test_a_pipe_does_not_block(tmp_path):
    path = tmp_path / "metrics.csv"
    os.mkfifo(path)
    assert points(Followed(path)) == []


def test_a_huge_file_is_read_in_parts_and_kept_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 1 << 17)
    monkeypatch.setattr(metrics, "MOST_AT_ONCE", 2)
    path, rows = tmp_path / "metrics.csv", 60_000
    with open(path, "w") as file:
        file.write("step,train/bpb\n")
        file.writelines(f"{step},{2 + step / rows}\n" for step in range(rows))
    followed = Followed(path)
    calls = 0
    while True:
        followed.read()
        calls += 1
        if not followed.behind:
            break
    assert calls > 2
    column = followed.columns["train/bpb"]
    assert DRAWN // 2 <= len(column.steps) <= 2 * DRAWN
    assert column.steps[0] == 1
    assert column.steps[-1] == rows
    apart = [b - a for a, b in zip(column.steps[:-2], column.steps[1:-1], strict=True)]
    assert max(apart) == min(apart)
    assert all(
        value == pytest.approx(2 + (step - 1) / rows)
        for step, value in zip(column.steps, column.values, strict=True)
    )


def test_a_line_without_an_end_is_passed_over(path):
    followed = Followed(path)
    with open(path, "ab") as file:
        file.write(b"7" * (2 * BLOCK + 5))
    assert points(followed) == [(10, 2.5)]
    append(path, "\r\n,19,2.25,\r\n")
    assert points(followed) == [(10, 2.5), (20, 2.25)]


def test_many_columns_are_bounded(tmp_path):
    path = tmp_path / "metrics.csv"
    names = [f"m{i}" for i in range(5000)]
    path.write_text(f"step,{','.join(names)}\n9,{','.join('1' for _ in names)}\n")
    followed = Followed(path)
    followed.read()
    assert 0 < len(followed.columns) <= metrics.MOST_COLUMNS


def test_a_column_keeps_its_latest_value():
    column = Column()
    for step in range(1, 5 * DRAWN):
        column.add(step, float(step))
        assert column.steps[-1] == column.values[-1] == step
    column.add(7, 0.0)  # a step that was there before
    assert column.steps[-1] == 5 * DRAWN - 1
