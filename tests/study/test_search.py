"""A search's draws, and the results that Optuna gets; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from jepa_lm.study.request import Composed, read_request
from jepa_lm.study.search import Search
from jepa_lm.utils.errors import UserError

pytest.importorskip("optuna")
SEARCHED = ("jepa.weight=interval(0,1)", "seed=1,2")


def compose(words):
    return Composed(
        tuple(words),
        "patch",
        frozenset({"jepa"}),
        1,
        lambda seed: {
            "words": list(words),
            "seed": seed,
            "data": {},
            "trainer": {},
            "metric": next((w[7:] for w in words if w.startswith("metric=")), None),
        },
    )


def search(*words: str, **settings) -> Search:
    asked = read_request(OverridesParser.create().parse_overrides(list(words)))
    node = OmegaConf.create({"trials": 4, "sampler": "tpe", "batch": 1, **settings})
    return Search(asked, compose, "test", node)


def run(found: Search, folder: Path, score) -> list[dict[str, str]]:
    """Simulate training of each batch: score(settings, seed) is its BPB, None for a failed job."""
    batches = 0
    for manifest, _ in found.batches(folder):
        batches += 1
        for group in manifest.groups:
            for seed, name in group.runs.items():
                bpb = score(group.settings, int(seed))
                record = {"status": "finished", "val": {"bpb": bpb}}
                (folder / name).mkdir(parents=True, exist_ok=True)
                text = json.dumps({"status": "failed"} if bpb is None else record)
                (folder / name / "summary.json").write_text(text)
    assert batches == -(-found.trials // found.batch)
    return [dict(group.settings) for group in manifest.groups]


def test_a_metric_is_searched_where_it_is_better(tmp_path):
    found = search(*SEARCHED, "metric=val/solved")
    shares = {}
    for manifest, configs in found.batches(tmp_path):
        for group in manifest.groups:
            for name in group.runs.values():
                share = shares[name] = float(group.settings["jepa.weight"])
                (tmp_path / name).mkdir(parents=True, exist_ok=True)
                (tmp_path / name / "config.json").write_text(json.dumps(configs[name]))
                record = {"status": "finished", "val": {"nll": 1.0, "bpb": None, "solved": share}}
                (tmp_path / name / "summary.json").write_text(json.dumps(record))
    assert manifest.metric == "val/solved"
    assert found.study.best_value == max(shares.values()) > min(shares.values())


def weight(settings, seed=0):
    return float(settings["jepa.weight"]) + seed


def test_optuna_is_told_the_mean_over_the_seeds(tmp_path):
    found = search(*SEARCHED)
    drawn = run(found, tmp_path, weight)
    told = [trial.value for trial in found.study.trials]
    assert told == pytest.approx([weight(settings) + 1.5 for settings in drawn])


def test_a_failed_job_is_no_score(tmp_path):
    found = search(*SEARCHED)
    run(found, tmp_path, lambda settings, seed: None if seed == 2 else 1.0)
    assert {trial.state.name for trial in found.study.trials} == {"FAIL"}


def test_the_same_command_draws_the_same(tmp_path):
    drawn = [run(search(*SEARCHED), tmp_path / name, weight) for name in "ab"]
    assert drawn[0] == drawn[1]
    assert run(search(SEARCHED[0], "seed=3,4"), tmp_path / "c", weight) != drawn[0]


@pytest.mark.parametrize(("sampler", "learns"), [("tpe", True), ("random", False)])
def test_tpe_learns_from_the_scores_and_random_does_not(tmp_path, sampler, learns):
    """Optuna's TPE draws ten times at random before it learns."""
    settings = {"sampler": sampler, "trials": 30}
    low = run(search(SEARCHED[0], **settings), tmp_path / "low", weight)
    high = run(search(SEARCHED[0], **settings), tmp_path / "high", lambda s, _: 1 - weight(s))
    means = [sum(map(weight, drawn[10:])) / 20 for drawn in (low, high)]
    assert (low != high) == learns
    assert (means[0] < 0.35 and means[1] > 0.65) == learns


def test_batches_are_drawn_before_their_scores_are_known(tmp_path):
    found = search("jepa.weight=interval(0,1)", trials=5, batch=2)
    waiting: dict[str, int] = {}

    def score(settings, seed):
        states = [trial.state.name for trial in found.study.trials]
        waiting.setdefault(settings["jepa.weight"], states.count("RUNNING"))
        return weight(settings)

    run(found, tmp_path, score)
    assert list(waiting.values()) == [2, 2, 2, 2, 1]


def test_whole_numbers_lists_and_logarithms(tmp_path):
    words = (
        "model.dim=int(interval(8,16))",
        "lr=tag(log,interval(1e-4,1.0))",
        "objective=patch,lewm",
        "jepa.weight=interval(0,1)",
    )
    drawn = run(search(*words, trials=40, sampler="random"), tmp_path, weight)
    assert all(8 <= int(s["model.dim"]) <= 16 for s in drawn)
    assert {s["objective"] for s in drawn} == {"patch", "lewm"}
    rates = [float(s["lr"]) for s in drawn]
    assert min(rates) >= 1e-4
    assert max(rates) <= 1
    # Half of log-uniform draws lie below .01; of uniform draws, one in a hundred.
    assert sum(rate < 0.01 for rate in rates) >= 8


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (SEARCHED, {"trials": 0}, "hydra.sweeper.trials=0: at least 1"),
        (SEARCHED, {"batch": 0}, "hydra.sweeper.batch=0: at least 1"),
        (SEARCHED, {"sampler": "grid"}, "hydra.sweeper.sampler=grid: one of tpe, random"),
        (("seed=1,2",), {}, "nothing to search"),
        (("lr=tag(log,interval(0,1))",), {}, r"lr: tag\(log, interval\(...\)\) must start above"),
        (("lr=interval(2,1)",), {}, r"the first number must be less than the second"),
    ],
)
def test_what_cannot_be_searched_is_named(words, settings, message):
    with pytest.raises(UserError, match=message):
        search(*words, **settings)
