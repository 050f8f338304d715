"""The collapse alarm in whole runs: healthy ones, and one without anything that keeps latents apart."""

from __future__ import annotations

import pytest

from jepa_lm.run import train
from tests.runs import metrics, summary

pytestmark = pytest.mark.slow

SHORT = ("jepa.diagnostics.every=10", "trainer.max_steps=60", "trainer.limit_val_batches=1")
"""Six measurements, of which the first does not count."""


@pytest.mark.parametrize("objective", ["lewm", "vicreg", "patch", "chunk"])
def test_a_healthy_run_is_not_said_to_collapse(small, tmp_path, capsys, objective):
    train(small(f"objective={objective}", *SHORT, run_dir=tmp_path / "run"))
    found = summary(tmp_path / "run")["jepa"]
    assert len(metrics(tmp_path / "run", "jepa/target_rank_share")) == 6
    assert found["collapse"] is None
    assert not any("collapse" in warning for warning in found["warnings"])
    assert "no sign of collapse" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_collapse_sets_off_the_alarm(small, tmp_path, capsys):
    """Nothing is masked, regularized, stopped or read from text: a perfect loss, and nothing to predict."""
    overrides = ("objective=lewm", "jepa.regularizers.sigreg.weight=0", "ce_weight=0")
    train(small(*overrides, *SHORT, run_dir=tmp_path / "run"))
    found = summary(tmp_path / "run")["jepa"]
    assert found["collapse"]["figure"] == "std_rms"
    assert found["collapse"]["kind"].endswith("have lost most of the spread that they had")
    assert "stop_gradient=false" in found["collapse"]["cause"]
    losses = metrics(tmp_path / "run", "jepa/loss")
    assert losses[-1] < 0.01 * losses[0]
    printed = capsys.readouterr()
    assert printed.err.count("warning: collapse at step") == 1
    out = " ".join(printed.out.replace("│", " ").split())
    assert f"collapsed by step {found['collapse']['step']}" in out
    assert "warning: collapse at step" in out
