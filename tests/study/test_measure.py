"""What a verdict is about: a metric at the budget or the best of it within the budget."""

from __future__ import annotations

import csv
import json
import math

import pytest

from jepa_lm.study import report
from jepa_lm.study.measure import Measure, measure_for
from jepa_lm.study.results import collect
from jepa_lm.study.runs import Run
from tests.study.conftest import WITHOUT_OTHERS
from tests.study.pages import AGAINST
from tests.study.pages import report as written
from tests.study.sweeps import NATS, paired, study, write_run

ROLES = {"treatment": {"weight_0": "control"}}


def validate(folder, dips: dict[str, float], steps=(99, 199, 299)) -> None:
    """Give every run validations on the way, the lowest of them below the final score by its arm's dip."""
    for name, seeds in json.loads((folder / "study.json").read_text())["group_runs"].items():
        for below in seeds:
            path = folder / below / "metrics.csv"
            with open(path, newline="") as file:
                rows = list(csv.DictReader(file))
            final = json.loads((folder / below / "summary.json").read_text())["val"]
            more = [{"step": s, "val/bpb": final["bpb"] + 0.2} for s in steps]
            more[1]["val/bpb"] = final["bpb"] - dips[name]
            for row in (*more, rows[-1]):
                bpb = float(row["val/bpb"])
                row["val/nll"] = bpb * NATS
            columns = [*rows[0], "val/nll"]
            with open(path, "w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows([*rows[:-1], *more, rows[-1]])


def made(folder, dips: dict[str, float], **about):
    """A study whose treatment is better at the end by 0.02, and arms whose minimum is lower by a dip."""
    study(folder, paired(1.7, -0.02), against=ROLES, **about)
    plan = json.loads((folder / "study.json").read_text())
    plan["group_runs"] = {g["name"]: list(g["runs"].values()) for g in plan["groups"]}
    (folder / "study.json").write_text(json.dumps(plan))
    validate(folder, dips)
    return collect(folder)


def test_a_better_brake_gains_at_the_budget_and_not_at_the_minimum(tmp_path):
    """The control overfits by 0.02 and the treatment does not; their minima are the same."""
    dips = {"control": 0.02, "treatment": 0.0}
    at_budget = made(tmp_path / "a", dips)
    assert at_budget.treatments[0].word == "better, no placebo"
    at_minimum = made(tmp_path / "b", dips, estimand="best")
    (treatment,) = at_minimum.treatments
    assert treatment.word == "equivalent"
    assert abs(treatment.main.effect.mean) < 0.002
    assert "smallest of all validations within the budget" in at_minimum.measure.says
    for folder, count in (
        ("a", 0),
        ("b", 2),
    ):  # with the scores of arms, and with their differences
        told = written(tmp_path / folder).markdown
        assert told.count("picked on the text that is reported") == count
    for results in (at_budget, at_minimum):
        report._write(results)
        text = (results.folder / "report.md").read_text()
        after = text.partition("At the budget, and at the best within it")[2].splitlines()
        _, row, *_ = (line for line in after if line.startswith("| treatment | control"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert float(cells[2].replace("\\", "")) == pytest.approx(-0.02, abs=0.002)
        assert abs(float(cells[4].replace("\\", ""))) < 0.002


def test_a_gain_at_the_minimum_is_one_however_the_runs_end(tmp_path):
    results = made(tmp_path, {"control": 0.0, "treatment": 0.04}, estimand="best")
    (treatment,) = results.treatments
    assert treatment.main.effect.mean == pytest.approx(-0.06, abs=0.002)
    assert treatment.main.effect.mean_nats == pytest.approx(-0.06 * NATS, abs=0.005)


def test_minima_over_other_steps_are_not_compared(tmp_path):
    made(tmp_path, {"control": 0.0, "treatment": 0.0}, estimand="best")
    run = collect(tmp_path).arms["treatment"].group.runs["1"]
    path = tmp_path / run / "metrics.csv"
    with open(path, "a") as file:
        last = path.read_text().splitlines()[-1].split(",")
        last[path.read_text().splitlines()[0].split(",").index("step")] = "349"
        file.write(",".join(last) + "\n")
    (treatment,) = collect(tmp_path).treatments
    assert treatment.word == "not comparable"
    assert "steps of the validations" in treatment.apart[0]


@pytest.mark.parametrize(
    ("role", "told"), [("rival_equal_flops", []), ("rival", ["apart"]), ("half", ["aside"])]
)
def test_only_a_rival_of_equal_flops_may_be_validated_at_other_steps(tmp_path, role, told):
    scores = {**paired(1.7, -0.02), "other": paired(1.7, 0.0)["control"]}
    roles = {"treatment": {"weight_0": "control", role: "other"}}
    longer = {"trainer.max_steps": (300, 350)}
    study(tmp_path, scores, against=roles, estimand="best", differences=longer)
    plan = json.loads((tmp_path / "study.json").read_text())
    runs = {g["name"]: list(g["runs"].values()) for g in plan["groups"]}
    plan["group_runs"] = {name: runs[name] for name in ("treatment", "control")}
    (tmp_path / "study.json").write_text(json.dumps(plan))
    validate(tmp_path, dict.fromkeys(runs, 0.0))
    plan["group_runs"] = {"other": runs["other"]}
    (tmp_path / "study.json").write_text(json.dumps(plan))
    validate(tmp_path, dict.fromkeys(runs, 0.0), steps=(99, 199, 299, 340))
    (treatment,) = collect(tmp_path).treatments
    said = {"apart": treatment.apart, "aside": treatment.aside}
    assert [where for where, why in said.items() if "steps of the validations" in str(why)] == told


def test_without_bytes_verdicts_are_in_nats(tmp_path):
    study(tmp_path, paired(1.7, -0.02), against=ROLES)
    for path in tmp_path.glob("*/summary.json"):
        found = json.loads(path.read_text())
        found["val"] |= {"bpb": None, "bytes": 0, "floor": 1.0}
        path.write_text(json.dumps(found))
    results = collect(tmp_path)
    assert results.measure == Measure("val/nll")
    (treatment,) = results.treatments
    assert treatment.main.effect.mean == pytest.approx(-0.02 * NATS, abs=0.005)
    assert "nats" in treatment.sentence
    report._write(results)
    text = (tmp_path / "report.md").read_text()
    assert "mean difference, nats" in text
    assert "mean difference, BPB" not in text
    assert "nats of every run" in text


def test_bits_per_byte_are_the_measure_unless_no_run_has_bytes(tmp_path):
    runs = [Run(write_run(tmp_path / str(i), 1.7)) for i in range(2)]
    without = Run(write_run(tmp_path / "rows", 1.7, summary={"val": {"bpb": None}}))
    assert measure_for(None, "budget", [*runs, without]).metric == "val/bpb"
    assert measure_for(None, "budget", [without]).metric == "val/nll"
    assert measure_for(None, "budget", []).metric == "val/bpb"


def of_shares(folder, name: str, treatment: list[float], control: list[float], **about):
    """A study of rows whose runs have these shares at the end, after a better validation on the way."""
    shares = {"treatment": treatment, "control": control}
    seeds = {arm: {str(i): 1.7 for i in range(len(found))} for arm, found in shares.items()}
    study(folder, seeds, against=ROLES, metric=f"val/{name}", **about)
    for group in json.loads((folder / "study.json").read_text())["groups"]:
        for seed, below in group["runs"].items():
            path, share = folder / below / "summary.json", shares[group["name"]][int(seed)]
            found = json.loads(path.read_text())
            found["val"] |= {"bpb": None, "bytes": 0, name: share}
            path.write_text(json.dumps(found))
            lines = f"99,0.1\n199,{share + 0.001}\n399,{share}\n"
            (folder / below / "metrics.csv").write_text(f"step,val/{name}\n{lines}")
    results = collect(folder)
    report._write(results)
    return results, (folder / "report.md").read_text()


def test_a_larger_accuracy_is_better_at_the_budget_and_at_the_best(tmp_path):
    up, down = [0.80, 0.82, 0.81, 0.83], [0.70, 0.71, 0.70, 0.73]
    for estimand, word in (("budget", "final"), ("best", "largest of all")):
        results, text = of_shares(
            tmp_path / estimand, "answer_accuracy", up, down, estimand=estimand
        )
        (treatment,) = results.treatments
        assert treatment.word == "better, no placebo"
        assert treatment.main.effect.mean == pytest.approx(0.105)
        assert treatment.main.effect.margin == 0.01
        assert treatment.main.effect.p_rule is None
        first = results.arms["treatment"].scores["0"]
        assert first == pytest.approx(0.801 if estimand == "best" else 0.8)
        for said in ("larger is better", "above zero, the treatment is better", word):
            assert said in text
        assert "challenge" not in text
        assert "BPB" not in text
    results, _ = of_shares(tmp_path / "other", "answer_accuracy", down, up)
    assert results.treatments[0].word == "hurts"


def test_a_falling_loss_says_nothing_of_equal_shares(tmp_path):
    """After 20 steps every further one lowers the loss by more than the margin of a share."""
    short = {arm: {"summary": {"steps": 20}} for arm in ("treatment", "control")}
    equal = [0.8, 0.8002, 0.8001, 0.8003], [0.8001, 0.8001, 0.8002, 0.8001]
    results, _ = of_shares(tmp_path, "answer_accuracy", *equal, runs=short)
    assert results.treatments[0].word == "equivalent"


def test_solved_seeds_decide_where_runs_solve_all_or_nothing(tmp_path):
    results, text = of_shares(
        tmp_path, "solved", [1.0, 0.99, 0.2, 0.97, 1.0], [0.2, 0.1, 0.3, 0.2, 0.9]
    )
    (treatment,) = results.treatments
    assert treatment.word == "better, no placebo"
    assert "solved by 4 of 5 seeds against 0 of 5, p = 0.024" in treatment.sentence
    assert "| seeds solved | 4 of 5 |" in text
    assert "| p, Fisher's exact test | 0.0238 |" in text
    assert "Fisher's exact test of the counts" in text


def test_a_plan_of_an_earlier_version_is_read(tmp_path):
    made(tmp_path, {"control": 0.0, "treatment": 0.0}, estimand="best")
    path = tmp_path / "study.json"
    plan = json.loads(path.read_text()) | {"estimand": "minimum", "metric": None}
    path.write_text(json.dumps(plan))
    found = collect(tmp_path).measure
    assert (found.metric, found.estimand) == ("val/bpb", "best")
    path.write_text(json.dumps({k: v for k, v in plan.items() if k not in ("estimand", "metric")}))
    found = collect(tmp_path).measure
    assert (found.metric, found.estimand) == ("val/bpb", "budget")


def test_a_metric_that_is_named_is_kept(tmp_path):
    study(tmp_path, paired(1.7, -0.02), against=ROLES, metric="val/nll")
    assert collect(tmp_path).treatments[0].main.effect.unit == "nats"


def test_a_run_without_the_metric_has_no_score(tmp_path):
    study(tmp_path, paired(1.7, 0.0), against=ROLES)
    run = next(tmp_path.glob("*/summary.json")).parent
    assert Measure("val/bpb", "best").of(Run(run)) == pytest.approx(Run(run).bpb)
    found = json.loads((run / "summary.json").read_text())
    found["val"] = None
    (run / "summary.json").write_text(json.dumps(found))
    assert Measure("val/bpb", "best").of(Run(run)) is None
    assert math.isfinite(NATS)


def test_the_plan_keeps_what_the_study_is_about(plan):
    words = ("study=ablation", "objective=patch", "seed=1,2,3", *WITHOUT_OTHERS)
    done = plan(*words, "study.metric=val/nll", "study.estimand=minimum")  # its former name
    assert (done.plan.metric, done.plan.estimand) == ("val/nll", "best")
    assert all("metric=val/nll" in job.overrides for job in done.plan.jobs)
    for word, known in (("metric=val/accuracy", "val/answer_accuracy"), ("estimand=last", "best")):
        wrong = plan(*words, f"study.{word}", folder=done.folder / word[:3])
        assert wrong.code == 2
        assert f"study.{word}" in wrong.error
        assert known in wrong.error
    wrong = plan(*words, "study.metric=val/solved", folder=done.folder / "text")
    assert wrong.code == 2
    assert "metric=val/solved: these data have val/bpb, val/nll" in wrong.error


@pytest.mark.parametrize(
    ("metric", "nll", "margin", "says"),
    [
        # bytes: a token of 0.8 BPB is 0.8 ln 2 nats
        ("val/bpb", 0.8 * math.log(2), 0.005, "0.005 BPB, or 0.00347 nats per token"),
        ("val/nll", 0.8 * math.log(2), 0.005 * math.log(2), "0.00347 nats per token, or 0.005 BPB"),
        # tokens of 2.5 bytes
        ("val/bpb", 2.5 * 0.8 * math.log(2), 0.002 / math.log(2), "0.00289 BPB, or 0.005 nats"),
        ("val/nll", 2.5 * 0.8 * math.log(2), 0.005, "0.005 nats per token, or 0.00289 BPB"),
        ("val/exact_match", 1.0, 0.01, "0.01 exact matches"),
    ],
)
def test_the_margin_is_that_of_the_unit(metric, nll, margin, says, tmp_path):
    val = {"bpb": 0.8, "nll": nll}
    run = Run(write_run(tmp_path, 0.8, summary={"val": val}))
    found = measure_for(metric, "budget", [run])
    assert found.margin == pytest.approx(margin)
    assert found.margin_says.startswith(says)
    given = measure_for(metric, "budget", [run], 0.25)
    assert given.margin == 0.25


def test_what_has_no_bytes_has_a_margin_in_nats(tmp_path):
    run = Run(write_run(tmp_path, 1.7, summary={"val": {"bpb": None}}))
    found = measure_for(None, "budget", [run])
    assert (found.metric, found.margin, found.margin_says) == ("val/nll", 0.005, "0.005 nats")


def test_a_margin_decides_what_is_equivalent(tmp_path):
    scores = paired(1.7, 0.0015, 8)  # less than the challenge's rule takes for real
    for margin, word in ((0.0005, "hurts"), (0.05, "equivalent")):
        folder = study(tmp_path / str(margin), scores, against=AGAINST, margin=margin)
        results = collect(folder)
        assert results.treatments[0].word == word
        assert results.treatments[0].main.effect.margin == results.measure.margin
    assert "Differences of up to 0.05 BPB" in written(folder).page.text
