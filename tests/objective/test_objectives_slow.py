"""Objectives in whole runs: two ranks through every phase, presets without a collapse alarm."""

from __future__ import annotations

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from jepa_lm.run import export, train
from jepa_lm.utils.config import resolve
from jepa_lm.utils.paths import CONF
from tests.conftest import FAST_MUON, SHALLOW, SMALL, VALUES
from tests.objective.conftest import DEEP_ENOUGH
from tests.objective.train_worker import found_in, recorded, train_all
from tests.runs import summary

pytestmark = pytest.mark.slow

PHASED = (
    "{_target_: jepa_lm.schedules.factors.Phased, points: [[0,0],[0.2,0],[0.2,1],[0.7,1],[0.8,0]]}"
)
IN_TWENTY_STEPS = {
    "vicreg": ("jepa.schedule.steps=5",),
    "patch": (f"jepa.schedule={PHASED}",),
    "lewm": (f"jepa.regularizers.sigreg.schedule={PHASED}",),
    "chunk": ("jepa.weight=0.1",),
    "chunk_loss_only": (),
    "llm_jepa": ("jepa.schedule.steps=7",),
    "recipes/pr1443": (),
    "recipes/pr2027": ("jepa.schedule.n=3",),
    "none": ("model/injector=chunk",),
}


@pytest.fixture(scope="module")
def summaries(tmp_path_factory, small_text):
    """The summary of every objective's run by number of ranks, each number in one set of processes."""
    found: dict[int, dict[str, dict]] = {}
    for ranks in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks-{ranks}")
        equal = ("trainer=ddp_sim", "+callbacks.equal._target_=tests.ranks.EqualRanks")
        configs = {}
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            for name, more in IN_TWENTY_STEPS.items():
                words = [
                    *SMALL,
                    f"data.path={small_text}",
                    f"objective={name}",
                    *more,
                    *DEEP_ENOUGH.get(name, ()),
                    "trainer.max_steps=20",
                    *([] if name == "none" else ["jepa.global_statistics=true"]),
                    *(equal if ranks > 1 else ()),
                    f"paths.run_dir={folder}/{name.replace('/', '-')}",
                ]
                configs[name.replace("/", "-")] = resolve(hydra.compose("train", overrides=words))
        train_all(folder, configs, ranks=ranks)
        found[ranks] = {name: summary(folder / name) for name in configs}
    return found


@pytest.mark.parametrize("name", IN_TWENTY_STEPS)
def test_two_ranks_cross_every_phase_and_stay_equal(summaries, name):
    """A head that is unused in one phase must not make the other rank wait."""
    one, two = (summaries[ranks][name.replace("/", "-")] for ranks in (1, 2))
    assert two["ranks"] == 2
    assert two["steps"] == one["steps"] == 20
    assert two["val"]["nll"] == pytest.approx(one["val"]["nll"], rel=2e-3)


@pytest.mark.parametrize("global_statistics", ["false", "true"])
def test_draws_of_each_rank_train_and_resume(small, tmp_path, global_statistics):
    """Different spans give different numbers of rows: no rank may wait, and a resumed run repeats them."""
    runs = {
        "a_shared": ("jepa.draws=shared",),
        "b_own": (),
        "c_resumed": (f"ckpt_path={tmp_path}/b_own/checkpoints/step-3.ckpt",),
    }
    configs = {}
    for name, overrides in runs.items():
        record = recorded(tmp_path, name, ranks=2, steps=[6])
        cfg = small(
            "objective=vicreg",
            "data.seq_len=64",
            "jepa.draws=per_rank",
            f"jepa.global_statistics={global_statistics}",
            "jepa.schedule.steps=1",
            "jepa.weight=1",
            "checkpoint.keep=9",
            "+callbacks.equal._target_=tests.ranks.EqualRanks",
            *record,
            *overrides,
        )
        configs[name] = resolve(cfg)
    train_all(tmp_path, configs, ranks=2)
    losses, gradients = found_in(tmp_path, list(runs))
    assert losses["a_shared"][1:] != losses["b_own"][1:]  # the first step is without the objective
    assert losses["c_resumed"] == losses["b_own"][3:]
    for name, gradient in gradients["b_own"][6].items():
        assert torch.equal(gradients["c_resumed"][6][name], gradient), name


PRESETS = ("pr1581_span_vicreg", "pr1243_jepardy", "pr832_byte_chunk", "pr1196_llm_jepa")


@pytest.mark.usefixtures("answers_here")
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_without_collapse_and_exports(compose, tmp_path, preset):
    """Shrunk in size, not in structure, on the embedded corpus."""
    train(
        compose(
            "train",
            f"experiment={preset}",
            "debug=tiny",
            *SHALLOW,
            *(VALUES if preset == "pr1243_jepardy" else ()),
            FAST_MUON,
            "data.batch_tokens=512",
            "trainer.max_steps=80",
            "trainer.limit_val_batches=4",
            "jepa.diagnostics.every=10",
        )
    )
    found = summary(tmp_path / "run")
    assert found["status"] == "finished"
    assert found["jepa"]["collapse"] is None
    warned = [w for w in found["jepa"]["warnings"] if "trunk" in w]
    assert bool(warned) == (preset == "pr832_byte_chunk")
    quick = ("export.max_tokens=8192", "export.codecs=[zstd]")
    where = tmp_path / "export"
    export(compose("export", f"ckpt_path={tmp_path}/run", *quick, run_dir=where))
    assert (where / "export.json").is_file()
