"""Sweeps that are planned by the real command but not run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins

from jepa_lm import cli
from jepa_lm.study import execution, manifest
from jepa_lm.utils.quoting import quoted
from tests.conftest import SMALL

RIVALS = tuple(
    f"rival_{kind}{equal}"
    for kind in ("sequential", "masked", "parallel", "law")
    for equal in ("", "_equal_flops")
)
WITHOUT_OTHERS = tuple(
    f"study.arms.{arm}=null" for arm in ("placebo", "prediction_only", "regularizers_only", *RIVALS)
)
"""Leaves out arms that a test is not about: Hydra takes half a second to compose each."""
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@dataclass
class Planned:
    """The result of a planning command."""

    code: int
    folder: Path
    launched: list[list[str]]
    """Words of each job that would run."""
    told: list[str]
    """Lines on stderr."""
    printed: list[str]
    """Lines on stdout."""

    @property
    def error(self) -> str:
        return self.told[-1] if self.told else ""

    @property
    def plan(self) -> manifest.Manifest:
        return manifest.load(self.folder)


Plan = Callable[..., Planned]


@pytest.fixture
def plan(monkeypatch, capsys, tmp_path, small_text) -> Plan:
    """plan(words...) runs `python train.py words...` up to the launch of its jobs, in a small model."""

    def run(
        *words: str, folder: Path = tmp_path / "sweep", quote: bool = False, small: bool = True
    ) -> Planned:
        launched: list[list[str]] = []

        def launch(self, job_overrides, initial_job_idx):
            launched.extend(list(words) for words in job_overrides)
            return []

        # Hydra loads its plugins by file, so its class differs from the imported one.
        launcher = Plugins.instance().class_name_to_class[BASIC]
        monkeypatch.setattr(launcher, "launch", launch)
        monkeypatch.setattr(execution, "report", lambda *_, **__: None)
        monkeypatch.setattr(execution, "failures", lambda *_: {})
        place = quoted(str(folder)) if quote else folder
        sizes = (*SMALL, f"data.path={small_text}") if small else ()
        common = (*sizes, f"hydra.sweep.dir={place}")
        flags = [word for word in words if word == "-m"]  # argparse wants it first
        words = tuple(word for word in words if word != "-m")
        monkeypatch.setattr(sys, "argv", ["train.py", *flags, *common, *words])
        capsys.readouterr()
        code = cli.launch("train")
        printed, told = capsys.readouterr()
        return Planned(code, folder, launched, told.strip().splitlines(), printed.splitlines())

    return run
