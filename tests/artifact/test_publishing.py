"""An export over an export: a kill at any moment leaves the earlier or the new one, whole."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jepa_lm.artifact.publishing import check_code_folder, counting, find_artifact, publish
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import held, staging, sweep_up

RECORDS = ("export.json", "submission.json", "model_card.md", "run_config.json")


class KilledError(BaseException):
    """Simulates SIGKILL: nothing after it runs."""


def write(folder: Path, name: str, text: str, code: str | None = None) -> None:
    """Write the files of an export, each of which names its artifact."""
    (folder / name).write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    said = {"artifact_sha256": sha256, "code": "minified" if code else "full"}
    for record in RECORDS:
        (folder / record).write_text(json.dumps(said))
    if code:
        (folder / "code" / "jepa_lm").mkdir(parents=True)
        (folder / "code" / "jepa_lm" / "a.py").write_text(code)
        (folder / "code" / ".export").touch()


def contents(folder: Path) -> tuple[str, str | None]:
    """Return artifact and code; check that every record belongs to that artifact."""
    (path,) = folder.glob("artifact.*")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    said = [json.loads((folder / name).read_text()) for name in RECORDS]
    assert {entry["artifact_sha256"] for entry in said} == {sha256}
    code = folder / "code" / "jepa_lm" / "a.py"
    return path.read_text(), code.read_text() if code.is_file() else None


def kill_at(monkeypatch, moment: int) -> None:
    """Simulate a kill before rename or deletion number `moment`, counted from 0."""
    counter = itertools.count()
    for module, name in ((os, "replace"), (os, "link"), (Path, "unlink")):
        real = getattr(module, name)

        def change(*args, real=real, **more):
            if next(counter) == moment:
                raise KilledError
            return real(*args, **more)

        monkeypatch.setattr(module, name, change)


@pytest.mark.parametrize("name", ["artifact.br", "artifact.xz"])
@pytest.mark.parametrize("code", [(None, None), ("old", "new"), ("same", "same"), ("old", None)])
def test_a_kill_at_any_moment_leaves_one_whole_export(tmp_path, monkeypatch, name, code):
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        folder.mkdir()
        write(folder, "artifact.br", "old", code[0])
        with staging(folder) as staged:
            write(staged, name, "new", code[1])
            with monkeypatch.context() as patch:
                kill_at(patch, moment)
                try:
                    publish(staged, folder)
                    over = True
                except KilledError:
                    over = False
        named = find_artifact(str(folder))
        account = json.loads((folder / "export.json").read_text())
        assert hashlib.sha256(named.read_bytes()).hexdigest() == account["artifact_sha256"]
        if over:
            assert contents(folder) == ("new", code[1])
            assert moment > 4
            break
        with staging(folder) as staged:  # the next export repairs everything
            write(staged, "artifact.br", "next", code[1])
            publish(staged, folder)
        assert contents(folder) == ("next", code[1])


def test_of_several_artifacts_the_one_counts_that_its_records_name(tmp_path):
    write(tmp_path, "artifact.br", "mine")
    (tmp_path / "artifact.xz").write_text("another")
    assert counting(sorted(tmp_path.glob("artifact.*"))) == tmp_path / "artifact.br"
    (tmp_path / "artifact.br").write_text("changed since")
    with pytest.raises(UserError, match=r"several files in .*artifact\.br, artifact\.xz"):
        find_artifact(str(tmp_path))


def test_code_is_never_put_over_what_no_export_wrote(tmp_path):
    (tmp_path / "code").mkdir()
    with pytest.raises(UserError, match=r"export\.code=minified: .*/code exists, and no export"):
        check_code_folder(tmp_path, "minified")
    write(tmp_path / "code", "artifact.br", "x")
    (tmp_path / "export.json").write_text('{"code": "minified"}')
    check_code_folder(tmp_path, "minified")


def test_a_held_file_stays_and_errors_name_the_file_that_the_user_named(tmp_path):
    path, folder = tmp_path / "last.ckpt", tmp_path / "export"
    folder.mkdir()
    path.write_text("first")
    with pytest.raises(UserError, match=rf"^ckpt_path={path}: first$"), held(path, folder) as file:
        _read_after_it_was_replaced(path, file, _other(tmp_path))
    assert not list(folder.iterdir())
    with pytest.raises(FileNotFoundError), held(path, folder):
        pass


def test_where_a_disk_has_no_second_names_a_copy_is_held(tmp_path, monkeypatch):
    path = _other(tmp_path)
    monkeypatch.setattr(os, "link", _refused)
    with held(path, tmp_path) as file:
        path.unlink()
        assert file.read_text() == "other"


def test_errors_of_staged_files_name_their_places(tmp_path):
    with pytest.raises(OSError, match="No space") as caught, staging(tmp_path) as staged:
        raise OSError(28, "No space left on device", str(staged / "artifact.br"))
    assert caught.value.filename == str(tmp_path / "artifact.br")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_swept_up(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)  # larger than any Linux process id
    with staging(tmp_path) as staged, held(_other(tmp_path), tmp_path) as file:
        (staged / "artifact.br").write_text("half")
        monkeypatch.undo()
        sweep_up(tmp_path)
        assert not staged.exists()
        assert not file.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_is_listed_but_dead_has_left_its_files(tmp_path, monkeypatch):
    """Nobody has waited for it yet, so that it is a zombie."""
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr(os, "getpid", lambda: killed.pid)
    with staging(tmp_path) as staged:
        monkeypatch.undo()
        sweep_up(tmp_path)
        assert staged.exists()  # it lives
        killed.kill()
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
        sweep_up(tmp_path)
        assert not staged.exists()
    killed.communicate()


def _read_after_it_was_replaced(path: Path, file: Path, by: Path) -> None:
    os.replace(by, path)
    path.unlink()
    raise UserError(f"ckpt_path={file}: {file.read_text()}")


def _other(folder: Path) -> Path:
    path = folder / "other.ckpt"
    path.write_text("other")
    return path


def _refused(*_):
    raise OSError(1, "Operation not permitted")
