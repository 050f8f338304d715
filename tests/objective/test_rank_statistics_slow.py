"""Each regularizer alone in two and four gloo processes, against one process with all rows."""

from __future__ import annotations

import json

import pytest

from jepa_lm.objective import sigreg
from jepa_lm.objective.regularizers import Regularizer
from tests.objective.statistics_worker import CASES, BarlowTwins, BehindBatchNorm, Compiled
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    """Largest relative difference of loss and gradient over ranks, by case and split."""
    path = tmp_path_factory.mktemp("statistics") / "found.json"
    run_ranks("tests.objective.statistics_worker", str(path), ranks=request.param)
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", CASES)
def test_the_joint_statistic_is_that_of_all_rows(found, case):
    assert max(found[case].values()) < 1e-10  # float64: the formula
    assert max(found[f"{case}/float32"].values()) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_a_local_statistic_is_another_one(found, case):
    assert found[f"{case}/local"]["even"] > 1e-3


def test_a_large_mean_does_not_drown_the_spread(found):
    far = {case: max(splits.values()) for case, splits in found.items() if case.endswith("/far")}
    assert len(far) == 4
    assert max(far.values()) < 1e-9  # sums of raw squares around 1e8 would be off by 1e-8


def test_every_regularizer_has_its_case():
    """A new regularizer must also be right on several ranks."""

    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(k) for k in kind.__subclasses__()))

    ours = {k for k in below(Regularizer) if k.__module__.startswith("jepa_lm")}
    assert sigreg.SIGReg in ours
    tried = {type(make()) for make in CASES.values()}
    assert tried - {BarlowTwins, BehindBatchNorm, Compiled} == ours - {Regularizer}
