"""One exported file for all tests that only read it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from jepa_lm.cli import CONF
from jepa_lm.run import export


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
def exported(trained, tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("export")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        export(hydra.compose("export", [f"ckpt_path={trained.folder}", f"paths.run_dir={folder}"]))
    return Exported(folder, json.loads((folder / "export.json").read_text()))
