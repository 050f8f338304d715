"""What a sweep does around its jobs; nothing is trained."""

from __future__ import annotations

import pytest

from jepa_lm.study import execution
from jepa_lm.study.manifest import Job, Manifest
from tests.study.pages import AGAINST
from tests.study.sweeps import paired, study


class Interrupted:
    """A launcher that Ctrl-C ends."""

    def launch(self, *args, **kwargs):
        raise KeyboardInterrupt


def test_a_signal_tells_how_to_go_on(tmp_path, capsys):
    jobs = (Job("all/seed-1", ("seed=1",), "x"),)
    plan = Manifest(name="train", kind="sweep", match=None, command=(), jobs=jobs, groups=())
    configs = {"all/seed-1": {"ckpt_path": None, "logger": {}}}
    with pytest.raises(KeyboardInterrupt):
        execution.run(plan, configs, tmp_path, Interrupted())
    assert f"the same command with hydra.sweep.dir={tmp_path} goes on" in capsys.readouterr().err


def test_a_study_ends_with_its_verdict(tmp_path, capsys):
    folder = study(tmp_path, paired(1.7, 0.02), against=AGAINST)
    execution.report(execution.load(folder), folder)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "objective=vicreg jepa.weight=0.1 hurts."
    assert told[1].startswith("Worse than weight 0: +0.02")
    assert told[-1] == f"report: {folder / 'report.html'}"
