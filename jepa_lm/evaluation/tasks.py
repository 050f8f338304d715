"""What rows ask beside their loss: answers that a model writes, and probes of its hidden states.

Answers are decoded greedily from the first validation rows and judged by the data. Where one of their tokens
has to be planned, the margin by which a model prefers it, after the true tokens before it, is measured, too.
Probes are linear, fitted on the frozen model's final hidden states of training rows and scored on validation
rows; one map serves all places of a label. All are counted in whole rows or labels, so the shares are the
same on any number of processes, and the margin up to rounding.
Legend: K figures, R rows, n labels of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from jepa_lm.data.questions import Planned
from jepa_lm.data.rows import Rows
from jepa_lm.data.split import Split
from jepa_lm.evaluation.bpb import Score, score_from_sums
from jepa_lm.evaluation.decoding import greedy_answers
from jepa_lm.evaluation.linear_probe import LinearProbe, with_bias
from jepa_lm.model import LanguageModel

Count = tuple[float, int]
"""How many are right, or the sum of a figure, and of how many."""


class Tasks:
    """The tasks of a run's data; of text, there are none.

    Args:
        val: the validation split. train: the training split, None if it is not at hand: there are then no
            probes.
    """

    def __init__(self, val: Split, train: Split | None) -> None:
        self._val, self._train = val.examples, None if train is None else train.examples
        self._rows = val.rows
        self.answers = self._val is not None and "answers" in self._val.fields
        """Whether only answers count in the loss, so that a meter counts their hits."""
        names: list[str] = []
        if self._val is not None and self._val.questions is not None and self._val.decoded:
            names += self._val.questions.rule_names
            if isinstance(self._val.questions, Planned):
                names.append(self._val.questions.margin_name)
        if self._val is not None and self._train is not None:
            names += [f"probe_{name}" for name in self._val.labels]
        self.names = tuple(names)
        """Names of the figures: shares of 1, and a margin in nats."""

    @torch.inference_mode()
    def counts(
        self,
        model: LanguageModel,
        rank: int = 0,
        world_size: int = 1,
        *,
        temperature: float = 1.0,
    ) -> Tensor:
        """Return what this process counts, [2 K] float64: a `Count` of each figure.

        Process r decodes every W-th batch of rows; the first one fits the probes. The model should be in
        evaluation mode. `temperature` divides its logits, as in the loss; no share depends on it.
        """
        device = model.embedding.table.weight.device
        found: dict[str, Count] = dict.fromkeys(self.names, (0, 0))
        for name, (right, total) in self._counted(model, device, rank, world_size, temperature):
            found[name] = found[name][0] + right, found[name][1] + total
        counted = [number for count in found.values() for number in count]
        return torch.tensor(counted, dtype=torch.float64, device=device)

    def score(self, sums: Sequence[float]) -> Score:
        """Return the score for the sums of a meter and, after them, `counts`, over all processes."""
        meter = len(sums) - 2 * len(self.names)
        score, right, total = score_from_sums(*sums[:meter]), sums[meter::2], sums[meter + 1 :: 2]
        found = {n: r / t for n, r, t in zip(self.names, right, total, strict=True)}
        return replace(score, others={**score.others, **found})

    def _counted(
        self,
        model: LanguageModel,
        device: torch.device,
        rank: int,
        world_size: int,
        temperature: float,
    ) -> Iterator[tuple[str, Count]]:
        if not self.names:
            return
        assert self._val is not None
        if self._val.questions is not None:
            for first in range(rank * self._rows, self._val.decoded, world_size * self._rows):
                chosen = slice(first, first + self._rows)
                yield from _answered(model, self._val, chosen, device, temperature)
        if rank == 0 and self._train is not None:
            yield from _probed(model, self._train, self._val, self._rows)


def _answered(
    model: LanguageModel, rows: Rows, chosen: slice, device: torch.device, temperature: float
) -> Iterator[tuple[str, Count]]:
    """Yield how many of the chosen rows a model answers rightly, by each rule, and its margins."""
    questions = rows.questions
    assert questions is not None
    known = rows.tokens[: rows.decoded][chosen].astype(np.int64)
    starts = rows.starts(rows.decoded)[chosen]
    written = greedy_answers(
        model,
        torch.from_numpy(known).to(device),
        starts,
        length=questions.answer_length,
        end=questions.end,
    )
    for name, right in questions.judge(known, starts, written.cpu().numpy()).items():
        yield name, (int(right.sum()), len(right))
    if isinstance(questions, Planned):
        margins = _margins(model, known, *questions.planned(known), device) / temperature
        yield questions.margin_name, (margins.double().sum().item(), len(known))


def _margins(
    model: LanguageModel, rows: np.ndarray, place: int, others: np.ndarray, device: torch.device
) -> Tensor:
    """Return the nats [R] by which a model prefers the token at a place to the likeliest of the others."""
    ids, rivals = torch.from_numpy(rows).to(device), torch.from_numpy(others).to(device)
    z = model.logits(model.tail(ids[:, :place], 1))[:, 0].float()  # [R, V]
    return z.gather(1, ids[:, place, None])[:, 0] - z.gather(1, rivals).amax(1)


def _probed(model: LanguageModel, train: Rows, val: Rows, rows: int) -> Iterator[tuple[str, Count]]:
    """Yield how many labels of the validation rows linear probes tell."""
    probes = {n: LinearProbe(1 + int(found.values.max())) for n, found in train.labels.items()}
    for name, hidden, classes in _states(model, train, rows):
        probes[name].add(hidden, classes)
    weights = {name: probe.weights() for name, probe in probes.items()}
    for name, hidden, classes in _states(model, val, rows):
        told = (with_bias(hidden) @ weights[name]).argmax(-1)
        yield f"probe_{name}", (int((told == classes).sum()), len(classes))


def _states(model: LanguageModel, rows: Rows, count: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, hidden states [R n, D] and classes [R n] of the labels, `count` rows at a time."""
    device = model.embedding.table.weight.device
    labels: Mapping[str, Tensor] = {n: torch.from_numpy(x.values) for n, x in rows.labels.items()}
    labelled = max(map(len, labels.values()), default=0)
    for first in range(0, labelled, count):
        chosen = slice(first, min(first + count, labelled))
        inputs = rows.batch(chosen)["inputs"].to(device)
        final = model.encode(model.embed(inputs)).final  # [R, T, D]
        for name, found in rows.labels.items():
            asked = final[:, torch.from_numpy(found.places)]
            yield name, asked.flatten(0, 1), labels[name][chosen].flatten()
