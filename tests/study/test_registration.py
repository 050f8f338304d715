"""A study's plan is dated and hashed before its first run, and the report tells what has changed since."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jepa_lm.study import manifest
from jepa_lm.study.exclusion import DEVIATIONS
from jepa_lm.study.registration import contents, register
from tests.study.conftest import WITHOUT_OTHERS
from tests.study.pages import AGAINST, report
from tests.study.sweeps import paired, study

STUDY = ("study=ablation", "objective=lse_mtp", *WITHOUT_OTHERS[1:])


def registered(folder, scores=None, **about):
    """Write a study with finished runs and a registration; return its folder."""
    study(folder, scores or paired(1.7, -0.02), against=AGAINST, **about)
    plan = manifest.load(folder)
    replace(plan, registration=register(plan)).save(folder)
    return folder


def edit(folder, **changed) -> None:
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_it_is_written_before_the_first_run_and_kept(plan):
    first = plan(*STUDY, "seed=1,2")
    assert first.code == 0, first.error
    found = first.plan.registration
    assert found.content["seeds"] == "1, 2"
    assert found.content["comparisons"] == "treatment against none, gates placebo"
    assert found.content["question"].startswith("Does the treatment change the bits per byte")
    assert f"more than {DEVIATIONS} median" in found.content["exclusion"]
    again = plan(*STUDY, "seed=1,2,3")
    assert again.code == 0, again.error
    assert again.plan.registration == found
    assert contents(again.plan)["seeds"] == "1, 2, 3"
    sweep = plan("-m", "objective=patch", "seed=1", folder=first.folder.with_name("b"))
    assert sweep.plan.registration is None


def test_the_report_says_that_nothing_has_changed(tmp_path):
    made = report(registered(tmp_path))
    assert "before the first run" in made.verdict.text
    assert "Nothing has changed since." in made.verdict.text
    assert "Exploratory" not in made.headline


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"margin": 0.05}, "margin was as docs/studies.md says, now 0.05 BPB"),
        ({"estimand": "best"}, "question was Does the treatment change"),
        ({"match": "time"}, "budget was equal steps, now equal time"),
    ],
)
def test_what_changed_since_is_told(changed, said, tmp_path):
    folder = registered(tmp_path)
    edit(folder, **changed)
    assert f"Changed since: {said}" in report(folder).verdict.text


def test_another_number_of_seeds_is_exploratory(tmp_path):
    folder = registered(tmp_path, paired(1.7, -0.02, 5))
    kept = json.loads((folder / "study.json").read_text())["registration"]
    more = tmp_path / "more"
    study(more, paired(1.7, -0.02, 8), against=AGAINST)
    edit(more, registration=kept)
    assert report(more).headline.endswith(
        "Exploratory: registered for 5 seeds, judged on 5 of them and 3 others."
    )
    (folder / "9" / "summary.json").unlink()  # still running: a look before the end
    assert report(folder).headline.endswith(
        "Exploratory: registered for 5 seeds, judged on 4 of them."
    )


def test_an_edited_registration_is_told(tmp_path):
    folder = registered(tmp_path)
    plan = json.loads((folder / "study.json").read_text())
    plan["registration"]["content"]["margin"] = "0.05 BPB"
    edit(folder, **plan)
    assert "was edited" in report(folder).verdict.text
