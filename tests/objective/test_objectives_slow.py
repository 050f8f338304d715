"""Objectives in processes of their own: two ranks through every phase, presets without an alarm."""

from __future__ import annotations

import json

import pytest

from tests.conftest import SMALL
from tests.objective.conftest import DEEP_ENOUGH
from tests.test_end_to_end_slow import run

pytestmark = pytest.mark.slow

PHASED = (
    "{_target_: jepa_lm.optim.schedule.Phased, points: [[0,0],[0.2,0],[0.2,1],[0.7,1],[0.8,0]]}"
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


@pytest.mark.parametrize("name", IN_TWENTY_STEPS)
def test_two_ranks_cross_every_phase_and_stay_equal(tmp_path, small_text, name):
    """Traps 3 and 4: a head that a phase leaves out must not make the other rank wait."""
    common = [
        *SMALL,
        f"data.path={small_text}",
        f"objective={name}",
        *IN_TWENTY_STEPS[name],
        *DEEP_ENOUGH.get(name, ()),
        "trainer.max_steps=20",
        "optimizer.groups.matrices.ns_dtype=float32",
    ]
    if name != "none":
        common.append("jepa.global_statistics=true")
    run("train.py", *common, f"hydra.run.dir={tmp_path}/one")
    equal = "+callbacks.equal._target_=tests.ranks.EqualRanks"
    run("train.py", *common, "trainer=ddp_sim", equal, f"hydra.run.dir={tmp_path}/two")
    one, two = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two"))
    assert two["steps"] == one["steps"] == 20
    assert two["val"]["nll"] == pytest.approx(one["val"]["nll"], rel=2e-3)


PRESETS = ("pr1581_span_vicreg", "pr1243_jepardy", "pr832_byte_chunk", "pr1196_llm_jepa")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_without_collapse_and_exports(tmp_path, preset):
    """Shrunk in size, not in structure, on the embedded corpus."""
    run(
        "train.py",
        f"experiment={preset}",
        "debug=tiny",
        "trainer.max_steps=150",
        "trainer.limit_val_batches=4",
        "jepa.diagnostics.every=10",
        f"hydra.run.dir={tmp_path}/run",
    )
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["status"] == "finished"
    assert found["jepa"]["collapse"] is None
    warned = [w for w in found["jepa"]["warnings"] if "trunk" in w]
    assert bool(warned) == (preset == "pr832_byte_chunk")
    run("export.py", f"ckpt_path={tmp_path}/run", f"hydra.run.dir={tmp_path}/export")
