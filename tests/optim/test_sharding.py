"""Newton-Schulz divided among ranks: the plan, the one exchange of a step, and unchanged results."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch

from benchmarks.models import compose
from jepa_lm.optim import muon, muon_adamw
from jepa_lm.optim.muon_adamw import MuonAdamW
from jepa_lm.optim.sharding import Matrix, Plan, plan_shares
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from tests.optim.sharding_worker import CASES, MIXED, STEPS, WORLDS, without_one
from tests.ranks import run_ranks

BFLOAT16_ROUNDING = 2.0**-8
"""For numbers up to 2, more than Newton-Schulz returns."""


@pytest.mark.slow
def test_ranks_that_share_the_work_end_like_one_process(tmp_path):
    """A single test, since each of pytest's workers would start its own ranks."""
    results = tmp_path / "found.json"
    run_ranks(
        "tests.optim.sharding_worker",
        str(tmp_path),
        str(results),
        ranks=max(WORLDS),
        timeout=120,
    )
    found = json.loads(results.read_text())
    assert list(found) == [str(ranks) for ranks in WORLDS]
    for ranks, by_case in found.items():
        for case in CASES:
            check_equal(by_case[case], case, f"{case} on {ranks} ranks")
            check_collectives(by_case[case], case, f"{case} on {ranks} ranks")
        # Planted bug, a matrix left out: memory that nobody wrote may hold anything, also NaN.
        assert not by_case["planted"]["relative"] < 1e-3, ranks


def check_equal(result: dict, case: str, where: str) -> None:
    assert result["ranks_equal"], where
    # whole on every rank: a checkpoint resumes with any number of ranks
    assert result["momenta_equal"], where
    if case.startswith("float32"):
        assert result["relative"] < 1e-6, where
    else:
        # batches of another size may round differently, a few times in each step
        assert result["in_updates"] < 4 * STEPS * BFLOAT16_ROUNDING, where


def check_collectives(result: dict, case: str, where: str) -> None:
    """One collective per step, none if no matrix has a gradient; and the host reads nothing."""
    assert result["collectives"] == ([1, 0, 1] if case == "no_gradient_at_all" else [1, 1, 1]), (
        where
    )
    assert result["alone_collectives"] == [0, 0, 0], where
    if not CASES[case].vector:  # AdamW reads its counters, which are on the host anyway
        assert result["host_reads"] == [0, 0, 0], where


def matrices(*shapes: tuple[int, int], ns_steps: int = 5) -> tuple[Matrix, ...]:
    return tuple(Matrix(0, rows, cols, ns_steps) for rows, cols in shapes)


@cache
def published() -> tuple[Matrix, ...]:
    """Return the matrices of submission #1243."""
    config = resolve(compose("experiment=pr1243_jepardy", "trainer=cpu", "paths.run_dir=unused"))
    with torch.device("meta"):
        task = LanguageModelTask(config, ProgressClock(max_steps=1, max_time=None))
        optimizer, _ = task.recipe.configure(task, task.clock)
    groups = [group for group in optimizer.param_groups if group["algorithm"] == "muon"]
    return tuple(
        Matrix(i, *p.shape, group["ns_steps"])
        for i, group in enumerate(groups)
        for p in group["params"]
    )


def check(plan: Plan, planned: tuple[Matrix, ...]) -> None:
    """Check that each matrix appears once, in a batch of one group and shape, in a place of its own."""
    spans: list[tuple[int, int, int]] = []
    for rank, batches in enumerate(plan.batches):
        for batch in batches:
            assert len({planned[i] for i in batch}) == 1
            for i, following in zip(batch, (*batch[1:], None), strict=True):
                where, begin = plan.places[i]
                end = begin + planned[i].rows * planned[i].cols
                assert where == rank
                assert following is None or plan.places[following] == (rank, end)
                spans.append((rank, begin, end))
    done = sorted(i for batches in plan.batches for batch in batches for i in batch)
    assert done == list(range(len(planned))), "not every matrix exactly once"
    assert sorted(i for kind in plan.kinds for i in kind) == done
    assert plan.numbers == max(end for _, _, end in spans)
    spans.sort()
    for (rank, _, end), (next_rank, begin, _) in pairwise(spans):
        assert begin >= end or next_rank > rank


def loads(plan: Plan, planned: tuple[Matrix, ...]) -> list[int]:
    return [sum(planned[i].flops for batch in share for i in batch) for share in plan.batches]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 64])
def test_a_plan_covers_each_matrix_once(ranks):
    for planned in (
        matrices(*MIXED),
        matrices((3, 5)),
        matrices(*MIXED) + matrices(*MIXED, ns_steps=3),
        published(),
    ):
        check(plan_shares(planned, ranks), planned)


def test_a_plan_is_made_once_and_depends_on_shapes_and_order_alone():
    planned = matrices(*MIXED)
    plan = plan_shares(planned, 3)
    assert plan_shares(matrices(*MIXED), 3) is plan
    plan_shares.cache_clear()
    assert plan_shares(planned, 3) == plan


def test_the_check_finds_a_matrix_left_out_or_done_twice():
    planned = matrices(*MIXED)
    with pytest.raises(AssertionError, match="exactly once"):
        check(without_one(planned, 3), planned)
    plan = plan_shares(planned, 3)
    first = plan.batches[0]
    with pytest.raises(AssertionError):
        check(replace(plan, batches=(first, first, *plan.batches[2:])), planned)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_the_published_shapes_are_balanced(ranks):
    planned = published()
    assert len(planned) > 60
    work = loads(plan_shares(planned, ranks), planned)
    assert max(work) <= 1.15 * sum(work) / ranks


def test_a_matrix_that_outweighs_the_rest_has_a_rank_of_its_own():
    planned = matrices((8, 8), (8, 16), (512, 512), (16, 8))
    assert plan_shares(planned, 2).batches[0] == ((2,),)


def test_flops_are_those_of_the_products():
    # [3, 5]: X X^T 2*3*3*5, A A 2*3*3*3, B X 2*3*3*5
    assert Matrix(0, 3, 5, ns_steps=2).flops == 2 * (90 + 54 + 90)
    assert Matrix(0, 5, 3, ns_steps=2).flops == Matrix(0, 3, 5, ns_steps=2).flops


def test_adamw_runs_while_the_exchange_is_in_flight(monkeypatch):
    events = []

    class Work:
        def wait(self) -> None:
            events.append("wait")

    def start_gather(mine):
        events.append("start")
        return torch.stack((mine, mine)), Work()

    adamw = muon_adamw.adamw
    monkeypatch.setattr(muon, "start_gather", start_gather)
    monkeypatch.setattr(
        muon_adamw, "adamw", lambda *a, **k: (events.append("adamw"), adamw(*a, **k))
    )
    for module in (muon, muon_adamw):
        monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    matrix, vector = (torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 6), (3,)))
    for p in (matrix, vector):
        p.grad = torch.randn_like(p)
    groups = [dict(params=[vector], algorithm="adamw"), dict(params=[matrix], algorithm="muon")]
    MuonAdamW([{"lr": 0.1, **group} for group in groups]).step()
    assert events == ["start", "adamw", "wait"]
