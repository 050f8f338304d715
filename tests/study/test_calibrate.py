"""Calibration: verdicts that must come out, told apart from those that do; nothing is trained here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from jepa_lm.study import calibrate
from jepa_lm.study.results import collect
from jepa_lm.utils.errors import UserError
from tests.study.sweeps import paired, study

ROLES = {"treatment": {"none": "control", "placebo": "placebo"}}
ONE = {"treatment": {"control": "control"}}


def as_known(
    folder: Path, name: str, *, law: float = -0.2, placebo: float = 0.0, pairs: int = 3
) -> None:
    """Write a study as it comes out: the treatments help, the placebos do nothing, fewer steps hurt."""
    apart = {"teacher": -0.12, "law": law, "noise": -0.1, "same": 0.0, "fewer_steps": 0.03}[name]
    scores = paired(2.0, apart, seeds=3, noise=0.002)
    roles = ONE
    if name in ("teacher", "law"):
        roles = ROLES
        scores["placebo"] = paired(2.0, placebo, seeds=pairs, noise=0.0035)["treatment"]
    study(folder / name, scores, against=roles)
    for about in json.loads((folder / name / "study.json").read_text())["groups"]:
        assert about["runs"]
    path = folder / name / "study.json"
    path.write_text(
        path.read_text().replace('"control"', '"none"') if roles is ROLES else path.read_text()
    )


@pytest.fixture
def trained(monkeypatch):
    """trained(**outcomes) lets calibrations find studies with these effects; returns what was asked for."""

    def prepare(**outcomes: float | int) -> list[list[str]]:
        asked: list[list[str]] = []

        def train(words, log):
            asked.append(list(words))
            (place,) = [
                w.split("=", 1)[1] for w in words if w.startswith(("hydra.sweep", "hydra.run"))
            ]
            if "experiment=scarce_teacher" in words:
                Path(place).mkdir(parents=True, exist_ok=True)
                finished = {"status": "finished", "val": {"nll": 1.0, "bpb": 2.0}}
                (Path(place) / "summary.json").write_text(json.dumps(finished))
                (seed,) = [int(w[5:]) for w in words if w.startswith("seed=")]
                (Path(place) / "config.json").write_text(json.dumps({"seed": seed}))
            elif Path(place).name == "ladder":
                Path(place).mkdir(exist_ok=True)
            else:
                as_known(Path(place).parent, Path(place).name, **outcomes)

        monkeypatch.setattr(calibrate, "train", train)
        return asked

    return prepare


def test_known_outcomes_pass(trained, tmp_path, capsys):
    asked = trained()
    code = calibrate.main(["--out", str(tmp_path), "trainer=cpu"])
    assert code == 0, (tmp_path / "calibration.md").read_text()
    assert json.loads((tmp_path / "calibration.json").read_text())["right"]
    text = (tmp_path / "calibration.md").read_text()
    assert "Every verdict is the known one" in text
    assert "[teacher](teacher/report.html)" in text
    assert [w for w in asked[1] if "jepa.target.path" in w] == [
        f"jepa.target.path={tmp_path / 'teacher_model'}"
    ]
    assert all("trainer=cpu" in words for words in asked)
    studies = [words for words in asked if any(w.startswith("study=") for w in words)]
    assert all("seed=range(1,4)" in words for words in studies)
    assert len(studies) == len(calibrate.STUDIES) + 1
    read = [w for words in asked for w in words if w.startswith("data.train_tokens")]
    assert read == [f"data.train_tokens={size}" for size in (350_000, 100_000, 40_000, 20_000)]
    paths = [f"{tmp_path}/ladder_models/{name}" for name in calibrate.LADDER]
    assert f"jepa.target.path={','.join(paths)}" in studies[-1]
    assert "(ladder/report.html) decide nothing" in text


@pytest.mark.parametrize(
    ("outcomes", "wrong"),
    [
        ({"law": 0.0}, "law of the state"),
        ({"law": 0.1}, "law of the state"),
        ({"placebo": -0.2}, "placebo of the teacher"),
        ({"pairs": 2}, "placebo of the law"),  # a control that has lost a run shows nothing
    ],
)
def test_another_outcome_fails(trained, tmp_path, capsys, outcomes, wrong):
    trained(**outcomes)
    assert calibrate.main(["--out", str(tmp_path), "--first-seed", "11"]) == 1
    assert f"warning: {wrong}: expected" in capsys.readouterr().err
    found = json.loads((tmp_path / "calibration.json").read_text())
    assert not found["right"]
    assert wrong in [c["name"] for c in found["comparisons"] if not c["right"]]
    assert "do not trust" in (tmp_path / "calibration.md").read_text()


def test_arms_that_are_not_comparable_give_no_known_outcome(tmp_path):
    compiled = {"control": {"summary": {"compiled": True}}}
    study(tmp_path, paired(2.0, -0.2, seeds=3, noise=0.002), against=ONE, runs=compiled)
    found = calibrate.outcome(calibrate.Known("x", "x", calibrate.BETTER), collect(tmp_path))
    assert found.word == "not comparable"
    assert not found.right


def test_the_teacher_is_trained_once(trained, tmp_path):
    asked = trained()
    calibrate.main(["--out", str(tmp_path)])
    first = len(asked)
    calibrate.main(["--out", str(tmp_path)])
    assert len([w for w in asked[first:] if "experiment=scarce_teacher" in w]) == 0


def test_an_interrupted_teacher_goes_on(trained, tmp_path):
    """Its summary is there, but it has seen a part of its text only."""
    asked = trained()
    calibrate.main(["--out", str(tmp_path)])
    first = len(asked)
    for name in ("teacher_model", "ladder_models/40k"):
        (tmp_path / name / "summary.json").write_text('{"status": "interrupted", "val": null}')
    calibrate.main(["--out", str(tmp_path)])
    again = [words for words in asked[first:] if "experiment=scarce_teacher" in words]
    assert [("data.train_tokens=40000" in words, "ckpt_path=auto" in words) for words in again] == [
        (False, True),
        (True, True),
    ]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--first-seed", "11"],
            "begun with --first-seed 1 and trainer=cpu, and this is --first-seed 11",
        ),
        (
            ["data.seq_len=64"],
            "and this is --first-seed 1 and data.seq_len=64 trainer=cpu; name another",
        ),
    ],
)
def test_a_folder_is_of_one_calibration(trained, tmp_path, capsys, more, words):
    """Or its teacher, trained with one seed, would teach the students of another."""
    asked = trained()
    assert calibrate.main(["--out", str(tmp_path), "trainer=cpu"]) == 0
    first = len(asked)
    assert calibrate.main(["--out", str(tmp_path), "trainer=cpu", *more]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert len(asked) == first


def test_the_teacher_of_another_seed_is_none(trained, tmp_path, capsys):
    """In a folder of before settings were kept, too."""
    trained()
    assert calibrate.main(["--out", str(tmp_path)]) == 0
    (tmp_path / "settings.json").unlink()
    assert calibrate.main(["--out", str(tmp_path), "--first-seed", "11"]) == 2
    assert "begun with --first-seed 1 and no overrides" in capsys.readouterr().err


def test_a_setting_that_no_training_took_is_not_kept(trained, tmp_path):
    assert calibrate.main(["--out", str(tmp_path), "no.such.key=1"]) == 2
    trained()
    assert calibrate.main(["--out", str(tmp_path)]) == 0


def test_verdicts_are_written_before_the_ladder_is_climbed(trained, tmp_path, monkeypatch):
    def broken(*args):
        raise UserError("no space left on the device")

    trained()
    monkeypatch.setattr(calibrate, "climb", broken)
    assert calibrate.main(["--out", str(tmp_path)]) == 2
    assert json.loads((tmp_path / "calibration.json").read_text())["right"]


def test_any_path_is_taken(monkeypatch, tmp_path):
    """Parentheses, commas, spaces and dollars mean something to Hydra."""
    asked, folder = [], tmp_path / "a (1), ${b}"
    monkeypatch.setattr(calibrate, "train", lambda words, log: asked.extend(words))
    monkeypatch.setattr(calibrate, "collect", lambda folder: None)
    monkeypatch.setattr(calibrate, "outcome", lambda known, results: None)
    calibrate.calibrate(folder, 1, [])
    calibrate.climb(folder, 1, [])
    parse = OverridesParser.create().parse_override
    found = {
        word.partition("=")[0]: parse(word) for word in asked if word.startswith(("hydra", "jepa"))
    }
    assert found["hydra.run.dir"].value() == _as_text(folder / "ladder_models" / "20k")
    assert found["hydra.sweep.dir"].value() == _as_text(folder / "ladder")
    assert [path.text for path in found["jepa.target.path"].value().list] == [
        _as_text(folder / "ladder_models" / name) for name in calibrate.LADDER
    ]


def _as_text(path: Path) -> str:
    """Return a path as Hydra hands it to OmegaConf, which takes a backslash away before a dollar."""
    return str(path).replace("${", "\\${")


def test_a_training_that_fails_is_one_line(tmp_path, capsys):
    assert calibrate.main(["--out", str(tmp_path), "no.such.key=1"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert "no.such.key" in said


def test_every_study_composes(compose):
    from jepa_lm.utils.config import resolve

    for words in calibrate.STUDIES.values():
        own = [w.format(teacher="teacher") for w in words if not w.startswith("study")]
        assert resolve(compose("train", *own))["trainer"]["max_steps"]
