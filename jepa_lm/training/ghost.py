"""Ghost warm-up (#903): steps before training that keep only the optimizer's moments.

Weights and averages return to their initial values, AdamW's counters to zero, the data to its first batch,
and no time is counted. Muon and AdamW then start with a direction, and compilation is done. As published,
these steps use each group's own momentum without its schedule, no quantization-aware training and no
clipping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from jepa_lm.optim.muon_adamw import MuonAdamW
from jepa_lm.utils.errors import UserError

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


def run_ghost_steps(task: LanguageModelTask, steps: int) -> None:
    """Train on the first batches, then keep the moments and restore everything else.

    Raises:
        UserError: the run uses float16, whose loss scale would be lost.
    """
    trainer = task.trainer
    if trainer.precision == "16-mixed":
        raise UserError(
            "optimizer.ghost_steps: not supported with trainer.precision=16-mixed; use bf16-mixed"
        )
    optimizer = task.optimizers().optimizer  # type: ignore[union-attr]
    assert isinstance(optimizer, MuonAdamW)
    start = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    batches = iter(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
    accumulate = trainer.accumulate_grad_batches
    with torch.random.fork_rng(), optimizer.own_momentum():
        for _ in range(steps):
            for micro_batch in range(accumulate):
                batch = trainer.strategy.batch_to_device(next(batches), task.device)
                loss = trainer.strategy.training_step(batch, micro_batch)
                assert isinstance(loss, torch.Tensor)
                trainer.strategy.backward(loss / accumulate, optimizer)
            task.on_before_optimizer_step(optimizer)
            optimizer.step()
            task.model.round_parameters()
            optimizer.zero_grad()
    task.load_state_dict(start)
    optimizer.zero_counters()
