"""Runs that diverged: each planted case has its word, and what the machine ended is no divergence."""

from __future__ import annotations

import json
import random
from concurrent.futures.process import BrokenProcessPool

import pytest
from hydra.core.utils import JobReturn, JobStatus

from jepa_lm.study import launch as launching
from jepa_lm.study.duration import Launching
from jepa_lm.study.manifest import Job, Manifest
from jepa_lm.study.results import collect
from jepa_lm.study.tables import estimands
from jepa_lm.study.treatments import Treatment
from jepa_lm.utils.errors import RankError, UserError, cause_of
from tests.study.pages import AGAINST
from tests.study.sweeps import paired, study

NAN = {"status": "failed", "error": "step 12: train/loss is nan", "cause": "run", "val": None}
DISK = {"status": "failed", "error": "last.ckpt: No space left on device", "cause": "machine"}


def judged(folder, scores, dead=None, record=NAN, **options) -> Treatment:
    """Return the verdict on these scores, with runs that ended with another record.

    Args:
        dead: seeds by arm.
    """
    planned = {name: tuple(seeds) for name, seeds in (dead or {}).items()}
    alive = {
        name: {s: score for s, score in of.items() if s not in planned.get(name, ())}
        for name, of in scores.items()
    }
    study(folder, alive, against=AGAINST, planned=planned, **options)
    plan = json.loads((folder / "study.json").read_text())
    for group in plan["groups"]:
        for seed in planned.get(group["name"], ()):
            below = folder / group["runs"][seed]
            below.mkdir()
            (below / "summary.json").write_text(json.dumps(record))
    (found,) = collect(folder).treatments
    return found


def test_an_objective_that_kills_six_runs_of_ten_is_not_called_a_gain_on_the_others(tmp_path):
    scores, dead = paired(1.7, -0.012, 10), {"treatment": ["1", "2", "3", "4", "5", "6"]}
    found = judged(tmp_path / "nan", scores, dead)
    assert found.word == "unstable"
    assert "6 diverged or failed (seed 1: step 12: train/loss is nan" in found.sentence
    assert (
        "of the runs of weight 0, none diverged or failed. The others say: Better" in found.sentence
    )
    assert "n = 4" in found.sentence
    none = {**NAN, "status": "finished", "val": {"nll": None, "bpb": None}}
    assert judged(tmp_path / "none", scores, dead, none).word == "unstable"
    # What the machine ended is missing, and says nothing.
    assert judged(tmp_path / "disk", scores, dead, DISK).word == "better, no placebo"


def test_runs_of_a_gate_that_are_out_are_told(tmp_path):
    """The word stands on the other pairs; a gate that diverges is no better for it."""
    scores = {**paired(1.7, -0.012, 8), "placebo": paired(1.7, 0.0, 8, noise=0.002)["treatment"]}
    scores["placebo"]["2"] = 3.4
    against = {"treatment": {"weight_0": "control", "placebo": "placebo"}}
    (found,) = collect(study(tmp_path / "a", scores, against=against)).treatments
    assert found.word == "helps"
    assert found.sentence.endswith(
        "Left out of the tests, with their partners: of placebo, 1 diverged or failed (seed 2: 3.4000 BPB, "
        "far from the arm's median)."
    )
    for arm in (
        "treatment",
        "control",
    ):  # of the same seed on both sides: no difference, and told as well
        scores[arm]["4"] = 3.4
    (found,) = collect(study(tmp_path / "b", scores, against=against)).treatments
    assert found.word == "helps"
    assert "of treatment, 1 diverged or failed (seed 4" in found.sentence
    assert "of control, 1 diverged or failed (seed 4" in found.sentence


def test_where_every_run_fails_nothing_has_diverged(tmp_path):
    """A setting that no run can start with."""
    scores = paired(1.7, -0.012, 3)
    found = judged(tmp_path, scores, {name: tuple(scores[name]) for name in scores})
    assert found.word == "too few seeds"


def test_a_blow_up_does_not_hide_a_harm(tmp_path):
    """Ten seeds of ten are worse; the one at 3.4 would give a paired test no power."""
    scores = paired(1.7, 0.01, 10)
    scores["treatment"]["7"] = 3.4
    found = judged(tmp_path, scores)
    assert found.word == "hurts"
    assert "seed 7: 3.4000 BPB, far from the arm's median" in found.sentence
    assert found.main.effect.n == 9
    assert len(found.arm.scores) == 10  # the report shows it all the same


@pytest.mark.parametrize("base", [3.4, None])
def test_harm_is_found_though_one_run_in_five_diverges(base, tmp_path):
    draw = random.Random(3)
    words = []
    for i in range(6):
        scores = paired(1.7, 0.008, 10, noise=0.002)
        dead = [seed for seed in scores["treatment"] if draw.random() < 0.2]
        if base is not None:
            scores["treatment"] |= {seed: base + draw.gauss(0, 0.1) for seed in dead}
        lost = {} if base is not None else {"treatment": tuple(dead)}
        words.append(judged(tmp_path / str(i), scores, lost).word)
    assert set(words) <= {"hurts", "unstable"}
    assert words.count("hurts") > 3


def test_a_seed_that_diverges_on_both_sides_makes_no_difference(tmp_path):
    scores = paired(1.7, -0.012)
    scores["control"]["3"], scores["treatment"]["3"] = 2.9, 3.3
    both = judged(tmp_path / "both", scores)
    assert (both.word, both.main.effect.n) == ("better, no placebo", 4)
    dead = dict.fromkeys(("control", "treatment"), ("3",))
    assert (
        judged(tmp_path / "dead", scores, dead).word == "unstable"
    )  # never "helps" with such a run
    scores["treatment"]["3"] = 1.69
    one = judged(tmp_path / "one", scores)
    assert one.word == "unstable"
    said = "none diverged or failed; of the runs of weight 0, 1 diverged or failed (seed 3: 2.9"
    assert said in one.sentence


ALL = {"weight_0": "control", "placebo": "placebo", "regularizers_only": "regularizers"}


@pytest.mark.parametrize(
    ("arm", "dead", "n", "spread", "controls"),
    [
        ("treatment", 3, 5, 0.003, ALL),  # a plateau, where the median is one of theirs
        ("treatment", 3, 4, 0.003, ALL),  # one run is left where the others' medians are
        ("control", 5, 8, 0.003, ALL),
        ("treatment", 3, 6, 0.2, AGAINST["treatment"]),  # half of all residuals are blow-ups
        ("control", 5, 8, 0.2, AGAINST["treatment"]),
    ],
)
def test_an_arm_most_of_whose_runs_blow_up_is_unstable(arm, dead, n, spread, controls, tmp_path):
    draw = random.Random(1)
    scores = paired(1.7, -0.012, n, noise=0.003)
    for gate in controls.values() - scores.keys():
        scores[gate] = {s: x + draw.gauss(0, 0.003) for s, x in scores["control"].items()}
    for seed in list(scores[arm])[:dead]:
        scores[arm][seed] = 3.4 + draw.gauss(0, spread)
    (found,) = collect(study(tmp_path, scores, against={"treatment": controls})).treatments
    assert found.word == "unstable"
    assert f" {dead} diverged or failed (seed 1: 3." in found.sentence
    assert "far from the arm's better runs" in found.sentence
    assert found.main.effect.n == n - dead


@pytest.mark.parametrize("lucky", [1, 2])
def test_runs_that_are_better_than_every_arm_are_luck(lucky, tmp_path):
    """The others of their arm are where the other arm is, so they have not diverged."""
    scores = paired(1.7, 0.0)
    for seed in "12345"[:lucky]:
        scores["treatment"][seed] -= 0.2
    assert judged(tmp_path, scores).main.effect.n == 5


def test_one_better_run_of_three_does_not_make_the_others_diverged(tmp_path):
    """A harm, and one run with half of it: it is not where the other arm is."""
    scores = paired(1.7, 0.1, 3, noise=0.001)
    scores["treatment"]["1"] -= 0.055
    assert judged(tmp_path, scores).main.effect.n == 3


def test_the_table_of_both_estimands_has_the_seeds_of_the_verdict(tmp_path):
    scores = paired(1.7, -0.012)
    scores["treatment"]["3"] = 3.4
    judged(tmp_path, scores)
    ((_, _, at_the_budget, *_),) = estimands(collect(tmp_path)).rows
    assert -0.02 < float(at_the_budget) < 0  # with seed 3 it would be +0.33


@pytest.mark.parametrize(
    ("far", "noise", "n"),
    [
        (0.06, 0.001, 4),  # above ten margins, and the others are close together
        (0.04, 0.001, 5),  # ten margins are 0.05
        (0.06, 0.03, 5),  # the others are as far apart
    ],
)
def test_a_run_is_out_by_both_measures(far, noise, n, tmp_path):
    draw = random.Random(5)
    control = {str(i): 1.7 + draw.gauss(0, noise) for i in range(5)}
    treatment = {seed: 1.7 + draw.gauss(0, noise) for seed in control}
    treatment["2"] = sorted(treatment.values())[2] + far
    scores = {"control": control, "treatment": treatment}
    assert judged(tmp_path, scores, margin=0.005).main.effect.n == n


def test_a_share_far_below_the_others_has_diverged(tmp_path):
    shares = {"control": dict(zip("12345", [0.8, 0.81, 0.79, 0.8, 0.8], strict=True))}
    shares["treatment"] = {**shares["control"], "4": 0.1, "5": 0.99}
    runs = {}
    folder = tmp_path
    study(folder, shares, against=AGAINST, runs=runs, metric="val/exact_match")
    plan = json.loads((folder / "study.json").read_text())
    for group in plan["groups"]:
        for seed, below in group["runs"].items():
            path = folder / below / "summary.json"
            record = json.loads(path.read_text())
            record["val"]["exact_match"] = shares[group["name"]][seed]
            path.write_text(json.dumps(record))
    (found,) = collect(folder).treatments
    assert found.main.effect.seeds == ("1", "2", "3", "5")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(28, "No space left on device"), "machine"),
        (MemoryError(), "machine"),
        (RankError("rank 1 was killed by signal 9"), "machine"),
        (UserError("val/nll is nan"), "run"),
        (RuntimeError("shapes"), "run"),
    ],
)
def test_what_the_machine_ended_is_told_from_what_the_run_computed(error, cause):
    assert cause_of(error) == cause
    told = UserError("last.ckpt: a line about it")
    told.__cause__ = error
    assert cause_of(told) == cause


class Failing:
    """A launcher whose jobs fail with an error, as often as there are errors."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.launched = list(errors), []

    def launch(self, words, initial_job_idx):
        self.launched.append(len(words))
        returned = []
        for _ in words:
            result = JobReturn()
            result.status = JobStatus.FAILED if self.errors else JobStatus.COMPLETED
            result._return_value = self.errors.pop(0) if self.errors else 1.0
            returned.append(result)
        return returned


def test_jobs_of_a_worker_that_was_killed_are_tried_once_more(tmp_path, capsys):
    """The launcher itself gives up then, and returns nothing."""

    class Killed(Failing):
        def launch(self, words, initial_job_idx):
            returned = super().launch(words, initial_job_idx)
            if len(self.launched) == 1:
                raise BrokenProcessPool("a child process terminated abruptly")
            return returned

    jobs = tuple(Job(f"all/seed-{i}", (f"seed={i}",), str(i)) for i in (1, 2))
    plan = Manifest(name="train", kind="sweep", match=None, command=(), jobs=jobs, groups=())
    configs = {job.folder: {"ckpt_path": None, "logger": {}, "compile": False} for job in jobs}
    launcher = Killed()
    launching.launch(plan, configs, jobs, tmp_path, launcher, Launching(1, 2))
    assert launcher.launched == [2, 2]
    told = capsys.readouterr().err
    assert "the launcher stopped: a child process terminated abruptly" in told
    assert "2 jobs were ended by the machine" in told


@pytest.mark.parametrize(
    ("errors", "launched"),
    [
        ([OSError(5, "Input/output error"), UserError("no")], [2, 1]),
        ([OSError(5, "Input/output error")] * 3, [2, 2]),  # once more, and not for ever
        ([UserError("no"), UserError("no")], [2]),
        ([], [2]),
    ],
)
def test_a_job_that_the_machine_ended_is_tried_once_more(errors, launched, tmp_path, capsys):
    jobs = tuple(Job(f"all/seed-{i}", (f"seed={i}",), str(i)) for i in (1, 2))
    plan = Manifest(name="train", kind="sweep", match=None, command=(), jobs=jobs, groups=())
    configs = {job.folder: {"ckpt_path": None, "logger": {}, "compile": False} for job in jobs}
    launcher = Failing(*errors)
    launching.launch(plan, configs, jobs, tmp_path, launcher, Launching(1, 2))
    assert launcher.launched == launched
    assert ("tried once more" in capsys.readouterr().err) == (len(launched) == 2)
