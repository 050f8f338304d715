"""`model.parameter_dtype=bfloat16` rounds weights as if they were stored so, and changes nothing else."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve
from jepa_lm.utils.errors import UserError
from tests.runs import fit

ROUNDED = "model.parameter_dtype=bfloat16"


def _on_the_grid(parameters) -> list[bool]:
    return [torch.equal(p, p.bfloat16().float()) for p in parameters]


def test_the_models_weights_are_rounded_and_those_of_the_objective_are_not(small, tmp_path):
    task = fit(small("objective=vicreg", ROUNDED, "trainer.max_steps=3", run_dir=tmp_path))
    assert all(_on_the_grid(task.model.parameters()))
    assert all(p.dtype == torch.float32 for p in task.parameters())
    assert not all(_on_the_grid(task.objective.parameters()))
    moments = [s["exp_avg"] for s in task.optimizers().state.values() if "exp_avg" in s]
    assert moments
    assert not all(_on_the_grid(moments))


def test_by_default_nothing_is_rounded(small, tmp_path):
    task = fit(small("trainer.max_steps=3", run_dir=tmp_path))
    assert not all(_on_the_grid(task.model.parameters()))


def test_a_start_is_the_same_start_rounded(small, tmp_path):
    starts = []
    for words in ((), (ROUNDED,)):
        torch.manual_seed(1)
        starts.append(LanguageModelTask(resolve(small(*words, run_dir=tmp_path))).model)
    for exact, rounded in zip(*(m.parameters() for m in starts), strict=True):
        assert torch.equal(exact.bfloat16().float(), rounded)


@pytest.mark.parametrize(
    ("dtype", "least", "most"), [("float32", 0.0, 0.7), ("bfloat16", 0.9, 1.0)]
)
def test_an_update_of_less_than_half_a_step_is_lost(small, tmp_path, dtype, least, most):
    """The reason to study it: at a small learning rate most weights do not move."""
    tables = []
    for lr in ("0", "1e-6"):
        words = (f"model.parameter_dtype={dtype}", f"optimizer.groups.embeddings.lr={lr}")
        task = fit(small(*words, "trainer.max_steps=1", run_dir=tmp_path / f"lr{lr}"))
        tables.append(task.model.embedding.table.weight.detach())
    unmoved = float((tables[0] == tables[1]).float().mean())
    assert least <= unmoved <= most


def test_ghost_steps_see_rounded_weights_too(small, tmp_path, monkeypatch):
    step, seen = LanguageModelTask.training_step, []

    def spied(task, batch, batch_idx):
        seen.append(all(_on_the_grid(task.model.parameters())))
        return step(task, batch, batch_idx)

    monkeypatch.setattr(LanguageModelTask, "training_step", spied)
    fit(small(ROUNDED, "optimizer.ghost_steps=2", "trainer.max_steps=1", run_dir=tmp_path))
    assert seen == [True] * 3


def test_another_dtype_is_refused(small, tmp_path):
    with pytest.raises(
        UserError, match=r"model\.parameter_dtype=float16: expected one of float32, bfloat16"
    ):
        fit(small("model.parameter_dtype=float16", run_dir=tmp_path))
