"""Validation: scores of several sets of weights, and the repeat of a validation that a kill interrupted."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.stream import Batch
from jepa_lm.evaluation.bpb import BPBMeter, Score, target_bytes, window_scores
from jepa_lm.evaluation.tasks import Tasks
from jepa_lm.model import LanguageModel
from jepa_lm.utils.errors import EveryRankError
from jepa_lm.utils.provenance import Resumed


class ValidationScores:
    """One pass over the validation split with several models on the same batches.

    Args:
        models: by the name of their weights. byte_counter: of the validation split, on their device.
        tasks: of the run's data.
    """

    def __init__(
        self, models: Mapping[str, LanguageModel], byte_counter: ByteCounter, tasks: Tasks
    ) -> None:
        self._models, self._byte_counter, self._tasks = models, byte_counter, tasks
        device = byte_counter.base.device
        self._meters = {name: BPBMeter(hits=tasks.answers).to(device) for name in models}

    def take(self, batch: Batch) -> None:
        """Score a batch."""
        n_bytes, answers = target_bytes(batch, self._byte_counter), batch.get("answers")
        for name, model in self._models.items():
            nats, hits = window_scores(
                model, batch["inputs"], batch["targets"], hits=answers is not None
            )
            self._meters[name].update(nats, n_bytes, answers, hits)

    def scores(self, trainer: Trainer) -> dict[str, Score]:
        """Do the tasks, and sum over all batches and ranks; return the score of each model by name."""
        found = {}
        for name, model in self._models.items():
            with trainer.precision_plugin.forward_context():
                counts = self._tasks.counts(model, trainer.global_rank, trainer.world_size)
            mine = torch.cat((self._meters[name].sums, counts))
            sums = trainer.strategy.reduce(mine, reduce_op="sum")
            assert isinstance(sums, Tensor)
            found[name] = self._tasks.score(sums.tolist())
        return found


def figures_of(
    scores: Mapping[str, Score], step: int, floor: float | None = None
) -> dict[str, float]:
    """Return what is logged of a validation, by metric.

    Args:
        floor: nats per token of the true law, where it is known.

    Raises:
        EveryRankError: a score is NaN or infinite.
    """
    figures: dict[str, float] = {}
    for name, score in scores.items():
        end = "" if name == "shipped" else f"_{name}"
        if not math.isfinite(score.nll):
            raise EveryRankError(
                f"val/nll{end} is {score.nll} at step {step}: the model's output is NaN or infinite; resume "
                "from an earlier checkpoint with lower learning rates (optimizer.groups.*.lr)"
            )
        figures[f"val/nll{end}"] = score.nll
        if score.bpb is not None:
            figures[f"val/bpb{end}"] = score.bpb
        if floor is not None:
            figures[f"val/above_floor{end}"] = score.nll - floor
        figures |= {f"val/{other}{end}": value for other, value in score.others.items()}
    return figures


def catch_up(
    trainer: Trainer, resumed: Resumed | None, every: int | None, *, chooses: bool
) -> None:
    """Run the validation that was due at a resumed run's checkpoint, which is written before validation.

    It runs before the next step, so that it is recorded under its own step and chooses the weights that ship.
    A run that has used up its budget is scored at its end anyway. Every rank must call this.

    Args:
        every: optimizer steps between validations. chooses: a validation chooses what ships, by scores that
            no checkpoint holds.
    """
    if resumed is None or trainer.should_stop or every is None or resumed.step % every:
        return
    if trainer.strategy.broadcast(resumed.validated) and not chooses:
        return
    loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    first = connector._first_loop_iter
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first
