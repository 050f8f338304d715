"""Two gloo processes against one: gradients of the joint batch, also for losses that use all ranks."""

from __future__ import annotations

import json

import pytest

from jepa_lm.utils.config import resolve
from tests.data.test_pairs import REGEX
from tests.data.test_rows import HMM, TINY, WALKS
from tests.objective.conftest import DEEP_ENOUGH, OBJECTIVES, RECIPES, TOKENS
from tests.objective.train_worker import recorded, train_all
from tests.ranks import run_ranks
from tests.runs import summary

pytestmark = pytest.mark.slow

WITHOUT_DROPOUT = {"recipes/pr1556": ("jepa.predictor.dropout=0.0",)}
CANCELLED = {"lewm_paper": ("optimizer.freeze=['objective.predictor.parts.step.linears.2.bias']",)}
"""A bias that the batch norm behind it removes: its gradient is rounding alone, on any number of ranks."""
OTHERS = {
    "info_nce": ("objective=vicreg", "jepa/distance=info_nce"),
    "oracle_law": (*HMM, *TINY, "objective=oracle_law"),
    "llm_jepa_pairs": (*REGEX, *TINY, "objective=llm_jepa_pairs", "jepa.schedule=null"),
    "nextlat_on_walks": (*WALKS, *TINY, "objective=nextlat"),
    "lse_mtp_on_pairs": (*REGEX, *TINY, "objective=lse_mtp"),
}
"""Objectives with another part, and those on rows, whose batches the data make."""
NAMES = (*OBJECTIVES, *RECIPES, *TOKENS, *OTHERS)


@pytest.fixture(scope="module")
def differences(tmp_path_factory, small_text, teacher):
    """Largest relative difference of a gradient, by objective."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from jepa_lm.utils.paths import CONF
    from tests.conftest import SMALL, needs_teacher

    folder = tmp_path_factory.mktemp("ranks")
    configs = {}
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for name in NAMES:
            more = (
                *DEEP_ENOUGH.get(name, ()),
                *WITHOUT_DROPOUT.get(name, ()),
                *CANCELLED.get(name, ()),
            )
            chosen = list(OTHERS.get(name, (f"objective={name}",)))
            sizes = () if "sample=false" in chosen else (*SMALL, f"data.path={small_text}")
            overrides = [*sizes, f"paths.run_dir={folder}", *more]
            if name not in TOKENS:
                chosen.append("jepa.global_statistics=true")
            if needs_teacher(chosen):
                chosen.append(f"jepa.target.path={teacher}")
            configs[name] = resolve(hydra.compose("train", overrides=[*overrides, *chosen]))
            if name == "lewm":
                stored = ("quantization=int4", "quantization.training.start=0")
                together = [*overrides, *chosen, *stored]
                configs["stored"] = resolve(hydra.compose("train", overrides=together))
    (folder / "configs.json").write_text(json.dumps(configs))
    run_ranks(
        "tests.objective.rank_worker", str(folder / "configs.json"), str(folder / "found.json")
    )
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_have_the_gradient_of_the_joint_batch(differences, name):
    assert differences[name] < 1e-5


def test_two_ranks_that_train_on_stored_weights_have_the_same_gradient(differences):
    assert differences["stored"] < 1e-5


def test_a_loss_outside_ddp_would_not(differences):
    """Planted bug: the auxiliary loss is computed outside of DDP's forward pass."""
    assert differences["outside_ddp"] > 1e-2


@pytest.mark.parametrize("name", ["lewm", "info_nce"])
def test_local_statistics_are_another_loss(differences, name):
    assert differences[f"{name}_local"] > 1e-4


def test_two_ranks_score_rows_and_tasks_as_one_does(tmp_path):
    """Rows that are padded and whose law is known, some of them decoded, in three batches for two ranks."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from jepa_lm.utils.paths import CONF

    words = (*WALKS, *TINY, "objective=nextlat", "data.val_batch_tokens=42")
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        record = recorded(folder, "walks", ranks=ranks)
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = resolve(hydra.compose("train", overrides=[*words, *record]))
        train_all(folder, {"walks": config}, ranks=ranks)
        found.append(summary(folder / "walks")["val"])
    one, two = found
    assert one["nll"] == pytest.approx(two["nll"], rel=1e-5)
    assert one["answer_accuracy"] > 0
    for name in ("tokens", "floor", "answer_accuracy", "solved"):
        assert one[name] == two[name], name
