"""Finding a checkpoint or artifact by a setting: contents and run names decide, not file times."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from jepa_lm.artifact.publishing import find_artifact
from jepa_lm.model.checkpoint import checkpoints_in, find_checkpoint, newest_whole
from jepa_lm.training.run_folder import find_resume
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.finding import runs_below


@pytest.fixture
def saved(trained, tmp_path):
    """saved(folder, step, name=...) writes a checkpoint that was saved after this many steps."""
    content = torch.load(trained.checkpoint, weights_only=True)

    def save(folder, step: int, name: str | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (name or f"step-{step}.ckpt")
        torch.save({**content, "global_step": step}, path)
        return path

    return save


def test_steps_decide_and_not_the_times_of_files(saved, tmp_path):
    """After a wrong clock, or `cp -r`, an older checkpoint can be the newer file."""
    folder = tmp_path / "checkpoints"
    for step, name in ((4, None), (12, "last.ckpt"), (8, None), (2, None)):
        saved(folder, step, name)  # the file with the fewest steps has the latest time
    assert [p.name for p in checkpoints_in(folder)] == [
        "last.ckpt",
        "step-8.ckpt",
        "step-4.ckpt",
        "step-2.ckpt",
    ]
    assert newest_whole(folder) == folder / "last.ckpt"
    assert find_checkpoint(str(tmp_path)) == folder / "last.ckpt"


def test_a_name_does_not_decide_where_the_content_says_otherwise(saved, tmp_path):
    saved(tmp_path, 3, "step-900.ckpt")
    assert newest_whole(tmp_path) is not None
    saved(tmp_path, 7, "mine.ckpt")
    assert newest_whole(tmp_path) == tmp_path / "mine.ckpt"


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(saved, tmp_path, capsys):
    good, bad = saved(tmp_path, 4), saved(tmp_path, 8)
    bad.write_bytes(bad.read_bytes()[:5000])
    assert newest_whole(tmp_path) == good
    assert f"{bad}: damaged" in capsys.readouterr().err


def test_links_to_nothing_and_pipes_are_passed_over(saved, tmp_path):
    good = saved(tmp_path / "checkpoints", 4)
    (tmp_path / "checkpoints" / "x.ckpt").symlink_to("/nonexistent")
    os.mkfifo(tmp_path / "checkpoints" / "y.ckpt")
    assert find_checkpoint(str(tmp_path)) == good
    with pytest.raises(UserError, match="neither a file nor a folder"):
        find_checkpoint(str(tmp_path / "checkpoints" / "y.ckpt"))


def test_last_is_the_newest_run_that_has_one_by_the_time_in_its_path(
    saved, tmp_path, monkeypatch, capsys
):
    """Also with a slash in the task's name, in a sweep, and after copies."""
    monkeypatch.chdir(tmp_path)
    logs = tmp_path / "logs"
    old = logs / "a" / "b" / "runs" / "2026-01-02_03-04-05-000001"
    new = logs / "train" / "multiruns" / "2026-01-02_03-04-05-000002" / "w-0.1" / "seed-1"
    none = logs / "train" / "runs" / "2026-01-02_03-04-05-000003"
    saved(new / "checkpoints", 4)
    saved(old / "checkpoints", 9)
    os.utime(new, (1, 1))
    (none / "checkpoints").mkdir(parents=True)
    assert [p.absolute() for p in runs_below(tmp_path / "logs")] == [old, new, none]
    assert find_checkpoint("last").absolute() == new / "checkpoints" / "step-4.ckpt"
    assert "has no checkpoints/*.ckpt" in capsys.readouterr().err
    assert find_resume("last", none).absolute() == new / "checkpoints" / "step-4.ckpt"  # type: ignore[union-attr]
    shutil.rmtree(logs / "train")
    assert find_checkpoint("last").absolute() == old / "checkpoints" / "step-9.ckpt"
    with pytest.raises(UserError, match="ckpt_path=last: no"):
        find_resume("last", old)


def test_the_folder_of_an_export_is_no_run_without_a_checkpoint(
    saved, tmp_path, monkeypatch, capsys
):
    """Each export made a later `ckpt_path=last` warn of the export's folder."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "logs" / "train" / "runs" / "2026-01-02_03-04-05-000001"
    export = tmp_path / "logs" / "export" / "runs" / "2026-01-02_03-04-05-000002"
    saved(run / "checkpoints", 4)
    export.mkdir(parents=True)
    (export / "artifact.br").write_bytes(b"x")
    assert find_checkpoint("last").absolute() == run / "checkpoints" / "step-4.ckpt"
    assert capsys.readouterr().err == ""
    later = export.parent.parent.parent / "train" / "runs" / "2026-01-02_03-04-05-000003"
    saved(later / "checkpoints", 4)
    assert find_artifact("last").absolute() == export / "artifact.br"
    assert f"{later.name} has no artifact" in capsys.readouterr().err


def test_two_artifacts_in_one_folder_have_to_be_told_apart(tmp_path):
    for name in ("artifact.xz", "artifact.br"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"several files .*artifact\.br, artifact\.xz.*name one"):
        find_artifact(str(tmp_path))
    (tmp_path / "artifact.xz").unlink()
    assert find_artifact(str(tmp_path)).name == "artifact.br"


@pytest.mark.parametrize("value", ["x" * 5000, "a\0b", "nowhere", "/dev/null"])
def test_what_is_no_path_is_one_line(value):
    with pytest.raises(UserError) as caught:
        find_checkpoint(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
