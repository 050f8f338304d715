"""A study's plan is dated and hashed before its first run, and the report tells what has changed since."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jepa_lm.study import manifest
from jepa_lm.study.exclusion import DEVIATIONS
from jepa_lm.study.registration import _digest, contents, register, told
from jepa_lm.study.report import headline
from jepa_lm.study.results import collect
from tests.study.conftest import WITHOUT_OTHERS
from tests.study.pages import AGAINST, report
from tests.study.sweeps import paired, study

STUDY = ("study=ablation", "objective=lse_mtp", *WITHOUT_OTHERS[1:])


def registered(folder, scores=None, against=AGAINST, **about):
    """Write a study with finished runs and a registration; return its folder."""
    study(folder, scores or paired(1.7, -0.02), against=against, **about)
    plan = manifest.load(folder)
    replace(plan, registration=register(plan)).save(folder)
    return folder


def with_placebo(folder):
    """Write such a study with a gate."""
    scores = {**paired(1.7, -0.02, 5), "placebo": paired(1.7, 0.0, 5)["treatment"]}
    against = {"treatment": {"weight_0": "control", "placebo": "placebo"}}
    return registered(folder, scores, against=against)


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
        ({"margin": 0.05}, "margin was 0.005 nats per token of tokenized text"),
        ({"estimand": "best"}, "question was Does the treatment change"),
        ({"match": "time"}, "budget was equal steps, now equal time"),
        ({"metric": "val/nll"}, "question was Does the treatment change"),
        (
            {"seeds": "open"},
            "looks was one, when all seeds have finished, now any, by e-values; tests was",
        ),
    ],
)
def test_another_question_than_the_registered_one_is_exploratory(changed, said, tmp_path):
    folder = registered(tmp_path)
    edit(folder, **changed)
    found = collect(folder)
    assert f"Changed since: {said}" in told(found.manifest)[0]
    assert f"Exploratory: changed since it was registered: {said}" in headline(found)


def test_a_gate_that_is_left_out_is_exploratory(tmp_path):
    folder = with_placebo(tmp_path)
    plan = json.loads((folder / "study.json").read_text())
    edit(folder, comparisons=[c for c in plan["comparisons"] if c["role"] != "placebo"])
    assert headline(collect(folder)).endswith(
        "Exploratory: changed since it was registered: comparisons was treatment against control, gates "
        "placebo, now treatment against control."
    )


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


@pytest.mark.parametrize("lacks", ["control", "placebo"])
def test_a_control_without_its_seeds_is_exploratory(lacks, tmp_path):
    """A look before the end: the treatment's runs are there, those that it is held against are not."""
    folder = with_placebo(tmp_path)
    assert "Exploratory" not in report(folder).headline
    (group,) = (g for g in manifest.load(folder).groups if g.name == lacks)
    (folder / group.runs["3"] / "summary.json").unlink()
    assert report(folder).headline.endswith(
        f"Exploratory: registered for 5 seeds, judged on 4 of them ({lacks})."
    )


def test_every_treatment_must_have_its_seeds(tmp_path):
    scores = {**paired(1.7, -0.02, 5), "other": paired(1.7, -0.02, 5)["treatment"]}
    against = {name: {"weight_0": "control"} for name in ("treatment", "other")}
    folder = registered(tmp_path, scores, against=against)
    (folder / "14" / "summary.json").unlink()
    assert report(folder).headline.endswith("judged on 4 of them.")


def test_another_config_than_the_registered_one_is_told(tmp_path):
    """Runs may be deleted and made again with another learning rate."""
    folder = registered(tmp_path)
    plan = json.loads((folder / "study.json").read_text())
    first = plan["groups"][1]["runs"]["1"]
    for job in plan["jobs"]:
        job["config_hash"] = "other" if job["folder"] == first else job["config_hash"]
    edit(folder, **plan)
    made = report(folder)
    said = "config of treatment was feefa85d7d0c754f, now other."
    assert f"Changed since: {said}" in made.verdict.text
    assert made.headline.endswith(f"Exploratory: changed since it was registered: {said}")


def test_a_registration_of_an_earlier_version_is_read(tmp_path):
    """It has no configs, the margin in other words, and was made after the draws."""
    folder = registered(tmp_path)
    plan = manifest.load(folder)
    tuned = replace(
        plan, tuning={"treatment": manifest.Tuned("lr x 2", {"lr": "2"}, 1, 2, 1.7, 1.8)}
    )
    content = {k: v for k, v in contents(tuned).items() if not k.startswith("config of")}
    content["margin"] = "as docs/studies.md says"
    date = plan.registration.date
    former = manifest.Registration(date, _digest(content, date), content)
    replace(tuned, registration=former).save(folder)
    said = report(folder).verdict.text
    assert "after its draws and before its first run" in said
    assert "Nothing has changed since." in said


def test_an_edited_registration_is_told(tmp_path):
    folder = registered(tmp_path)
    plan = json.loads((folder / "study.json").read_text())
    plan["registration"]["content"]["seeds"] = "1, 2, 3"
    edit(folder, **plan)
    made = report(folder)
    assert "was edited" in made.verdict.text
    assert made.headline.endswith("Exploratory: its registration was edited.")


def test_a_registration_that_was_removed_is_told(tmp_path):
    """A plan that names its seeds was registered when it was written; earlier ones were not."""
    folder = registered(tmp_path)
    edit(folder, planned=["1", "2", "3", "4", "5"])
    assert "Exploratory" not in headline(collect(folder))
    edit(folder, registration=None)
    made = report(folder)
    assert "Not registered: it was removed." in made.verdict.text
    assert made.headline.endswith("Exploratory: its registration was removed.")
    edit(folder, planned=[])
    made = report(folder)
    assert "this study began before registrations were kept" in made.verdict.text
    assert "Exploratory" not in made.headline
