"""Fixtures: one exported file for all tests that only read it, and hostile files on every route."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from jepa_lm import run
from jepa_lm.artifact.__main__ import main as look
from jepa_lm.run import export
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.paths import CONF
from tests.artifact.hostile import SECRET, artifact_with, bounded, checkpoint_with
from tests.sharing import once


@dataclass(frozen=True)
class Exported:
    """An export of the shared run."""

    folder: Path
    account: dict[str, Any]

    @property
    def file(self) -> Path:
        (path,) = self.folder.glob("artifact.*")
        return path


@pytest.fixture(scope="session")
def exported(session_folder, trained) -> Exported:
    def make(folder: Path) -> None:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            words = [f"ckpt_path={trained.folder}", f"paths.run_dir={folder}"]
            export(hydra.compose("export", words))

    folder = session_folder / "exported"
    once(folder, make)
    return Exported(folder, json.loads((folder / "export.json").read_text()))


@pytest.fixture
def exporting(trained, compose, tmp_path, answers_here):
    """exporting(overrides...) exports the shared run in this process and returns the account."""

    def run(*overrides: str) -> dict:
        export(compose("export", f"ckpt_path={trained.folder}", *overrides))
        return account()

    def account() -> dict:
        return json.loads((tmp_path / "run" / "export.json").read_text())

    run.account = account
    run.folder = tmp_path / "run"
    return run


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that appears if anything named in a hostile file is run."""
    path = tmp_path / "made"
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("OWNED", str(path))
    monkeypatch.delitem(sys.modules, "tests.artifact.owned", raising=False)
    return path


@pytest.fixture
def go(compose, small, exported, trained, tmp_path, capsys):
    """go(route, place, value) reads a hostile file through a command and returns the refusal as text."""

    def refused(route: str, place: tuple[str, ...], value: object) -> str:
        make = artifact_with if "artifact" in route else checkpoint_with
        source = exported.file if "artifact" in route else trained.checkpoint
        file = make(source, tmp_path, place, value)
        with bounded():
            return refusal(route, file)

    def refusal(route: str, file) -> str:
        if route == "look at artifact":
            assert look([str(file)]) == 2
            return capsys.readouterr().err
        commands = {
            "eval artifact": (run.evaluate, compose, "eval", f"artifact_path={file}"),
            "eval checkpoint": (run.evaluate, compose, "eval", f"ckpt_path={file}"),
            "export checkpoint": (run.export, compose, "export", f"ckpt_path={file}"),
            "resume": (run.train, small, f"ckpt_path={file}"),
        }
        command, composed, *words = commands[route]
        cfg = composed(*words)
        with pytest.raises(UserError) as caught:
            command(cfg)
        return str(caught.value)

    refused.refusal = refusal  # type: ignore[attr-defined]
    return refused
