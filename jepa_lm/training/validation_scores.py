"""Scores several sets of weights on the same batches of the validation split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from jepa_lm.data.stream import Batch
from jepa_lm.evaluation.bpb import BPBMeter, Score, score_batch, score_from_sums
from jepa_lm.quantization.qat import stored_copy

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


class ValidationScores:
    """One pass over the validation split with raw weights, averages, and the shipped weights quantized.

    Quantized weights are scored once quantization-aware training has started; they are a copy of the weights
    that ship when the pass begins.
    """

    def __init__(self, task: LanguageModelTask) -> None:
        self._task = task
        self._models = task.averages.models(task.model)
        if task.stored is not None and task.stored.first_step is not None:
            self._models["quantized"] = stored_copy(task.shipped, task.formats)
        self._meters = {name: BPBMeter().to(task.device) for name in self._models}

    def take(self, batch: Batch) -> None:
        """Score a batch."""
        assert self._task.val_bytes is not None
        for name, model in self._models.items():
            score_batch(model, batch, self._task.val_bytes, self._meters[name])

    def scores(self) -> dict[str, Score]:
        """Sum over all batches and ranks; `ship=best` chooses the weights that ship by the losses.

        Returns:
            Scores of `shipped`, and of the other weights by name.
        """
        strategy, averages = self._task.trainer.strategy, self._task.averages
        found = {}
        for name, meter in self._meters.items():
            sums = strategy.reduce(meter.sums.clone(), reduce_op="sum")
            assert isinstance(sums, Tensor)
            found[name] = score_from_sums(*sums.tolist())
        averages.choose({name: score.nll for name, score in found.items() if name != "quantized"})
        scores = {"shipped": found[averages.shipped()], **found}
        if found.keys() <= {"raw", "quantized"}:
            del scores["raw"]  # it is what ships
        return scores
