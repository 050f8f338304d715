"""Material for readers of this project's files: a small run and its export, made on first use."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra

from jepa_lm import run as commands
from jepa_lm.data.corpora import Austen
from jepa_lm.utils import schema
from jepa_lm.utils.paths import CONF
from tests.conftest import SMALL


@dataclass(frozen=True)
class Material:
    """A folder that holds `run` and `export`, or will once they are made."""

    folder: Path

    @property
    def run(self) -> Path:
        """A finished run of a few steps on some English."""
        folder = self.folder / "run"
        if not folder.exists():
            text = self.folder / "emma.txt"
            blocks = Austen().blocks("train")
            text.write_text("".join(next(blocks).text for _ in range(4))[:60_000], encoding="utf-8")
            _command(
                "train", folder, *SMALL, f"data.path={text}", f"paths.cache={self.folder / 'cache'}"
            )
        return folder

    @property
    def export(self) -> Path:
        """The run's artifact, in a folder with its account."""
        folder = self.folder / "export"
        if not folder.exists():
            _command("export", folder, f"ckpt_path={self.run}")
        return folder


def _command(name: str, folder: Path, *overrides: str) -> None:
    schema.register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(name, overrides=[f"paths.run_dir={folder}", *overrides])
    with contextlib.redirect_stdout(sys.stderr):
        getattr(commands, name)(cfg)
