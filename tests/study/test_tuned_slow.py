"""A whole tuned study by the real command: its draws, the arms with their best draws, and its records."""

from __future__ import annotations

import pytest

from jepa_lm.study import __main__ as command
from jepa_lm.study import manifest
from jepa_lm.study.results import collect
from jepa_lm.study.runs import Run
from jepa_lm.utils.nested import flat
from tests.conftest import SMALL
from tests.processes import run
from tests.study.conftest import WITHOUT_OTHERS

pytestmark = pytest.mark.slow


def test_a_tuned_study_runs_each_arm_with_its_best_draw(tmp_path, small_text):
    folder = tmp_path / "mine"
    words = (
        "study=tuned",
        "objective=lse_mtp",
        "seed=1,2,3",
        "study.tuning.draws=3",
        "study.tuning.text=3000",
        *SMALL,
        "trainer.max_steps=6",
        *WITHOUT_OTHERS,
        f"data.path={small_text}",
        f"hydra.sweep.dir={folder}",
    )
    run("train.py", *words)
    plan, results = manifest.load(folder), collect(folder)
    (treatment,) = results.treatments
    assert treatment.apart == ()
    assert plan.tuning.keys() == {"treatment", "none"}
    for arm, best in plan.tuning.items():
        scores = [Run(folder / f"tuning/{arm}/draw-{i}/seed-1001").bpb for i in range(3)]
        assert min(scores) == scores[best.draw] == best.score
        config = flat(Run(folder / f"{arm}/seed-2").config)
        assert config["data.validate_on"] == "validation"
        assert config["data.tuning"] == 3000
        for key, value in best.settings.items():
            assert float(config[key]) == float(value)
    assert plan.registration.content["tuning"].startswith("the best of 3 draws of each arm")
    assert "tuned" not in plan.registration.content
    report = (folder / "report.md").read_text()
    assert "before the first run" in report
    assert "Nothing has changed since." in report
    assert "Exploratory" not in report
    assert "Best draw of each arm" in report
    dry = run("train.py", *words, "study.dry_run=true")
    assert "7 runs, 7 of them already finished" in dry
    assert command.main(["export", str(folder)]) == 0
    packed = folder.with_suffix(".zip").rename(tmp_path / "theirs.zip")
    assert command.main([str(packed)]) == 0
    assert manifest.load(tmp_path / "theirs" / "tuning").jobs
    assert (tmp_path / "theirs/tuning/none/draw-0/seed-1001/summary.json").is_file()
