"""Probes of the frozen model, on request: top-1/5/10 accuracy of the next token.

- `head`: the language model's own logits.
- `linear`: a linear probe (`jepa_lm.evaluation.linear_probe`) from the hidden state after the final norm to
  the next token, fitted on training tokens.
- `retrieval`: how often an objective's prediction has its own target among the k nearest (by cosine)
  targets of the sample; chance is k / candidates.
Accuracies are measured on validation tokens; only the fit uses training tokens.
Legend: N tokens, D width, V vocabulary, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lm.data.split import Split
from jepa_lm.data.stream import Batch
from jepa_lm.data.token_data import TokenData
from jepa_lm.evaluation.linear_probe import LinearProbe, with_bias
from jepa_lm.model import LanguageModel
from jepa_lm.objective import LatentPrediction, StepContext

TOP = (1, 5, 10)
FIT_TOKENS, SCORED_TOKENS = 65_536, 32_768
CANDIDATES = 512


def sample_windows(part: Split, tokens: int) -> Iterable[Batch]:
    """Yield evenly spaced windows of a split, about `tokens` tokens in total, a batch at a time.

    A split shorter than a window is a single window; rows that are examples are windows.
    """
    stream, rows, seq_len = part.stream, part.rows, min(part.seq_len, part.stream.total - 1)
    if part.examples is not None:
        windows = part.windows(tokens)
        yield from (windows[i] for i in range(len(windows)))
        return
    count = max(1, min(tokens, stream.total - 1) // seq_len)
    starts = np.linspace(0, stream.total - seq_len - 1, count).astype(np.int64)
    for first in range(0, count, rows):
        buffer = np.empty((len(starts[first : first + rows]), seq_len + 1), dtype=np.int64)
        for row, start in zip(buffer, starts[first : first + rows], strict=True):
            stream.read(int(start), row)
        ids = torch.from_numpy(buffer)
        yield {"inputs": ids[:, :-1], "targets": ids[:, 1:]}


def hits(scores: Tensor, wanted: Tensor) -> Tensor:
    """Return how many rows of scores [R, V] have the wanted index [R] among their k best, for k in TOP."""
    own = scores.gather(1, wanted[:, None])  # [R, 1]
    better = (scores > own).sum(1)
    return torch.stack([(better < k).sum() for k in TOP]).double()


@torch.no_grad()
def probe(
    model: LanguageModel,
    objective: LatentPrediction | None,
    data: TokenData,
    step_context: StepContext,
) -> dict[str, Any]:
    """Return the accuracies by probe, {"head": {"top1": ...}, ...}."""
    was_training = model.training
    model.eval()
    if objective is not None:
        objective.eval()
    device = model.embedding.table.weight.device

    def batches(split: str, tokens: int) -> Iterable[Batch]:
        for batch in sample_windows(data.split(split), tokens):
            yield {name: t.to(device) for name, t in batch.items()}

    fitted = LinearProbe(model.vocab_size)
    for batch in batches("train", FIT_TOKENS):
        final = model.encode(model.embed(batch["inputs"])).final
        fitted.add(final.flatten(0, 1), batch["targets"].flatten())  # [N, D], [N]
    weights = fitted.weights()
    found = {"head": torch.zeros(len(TOP)).double(), "linear": torch.zeros(len(TOP)).double()}
    tokens = 0
    for batch in batches("val", SCORED_TOKENS):
        logits, main = model(batch["inputs"])
        wanted = batch["targets"].flatten()  # [N]
        tokens += len(wanted)
        found["head"] += hits(logits.flatten(0, 1), wanted).cpu()
        linear = with_bias(main.final.flatten(0, 1)) @ weights  # [N, V]
        found["linear"] += hits(linear, wanted.cpu())
    result: dict[str, Any] = {name: _named(count / tokens) for name, count in found.items()}
    if objective is not None:
        result["retrieval"] = _retrieval(
            model, objective, next(iter(batches("val", SCORED_TOKENS))), step_context
        )
        objective.train(was_training)
    model.train(was_training)
    return result


def _retrieval(
    model: LanguageModel, objective: LatentPrediction, batch: Batch, step_context: StepContext
) -> dict[str, float]:
    _, main = model(batch["inputs"], *objective.main_needs(model))
    latents = objective.compare(model, batch, main, step_context)
    # Predictions and targets of all pairs, [R, D] each.
    sides = [torch.cat([pair[i].flatten(0, -2) for pair in latents.normed]) for i in (0, 1)]
    step = max(1, len(sides[0]) // CANDIDATES)
    prediction, target = (F.normalize(x[::step][:CANDIDATES], dim=-1) for x in sides)
    own = torch.arange(len(target), device=target.device)
    return _named(hits(prediction @ target.T, own).cpu() / len(own)) | {"candidates": len(own)}


def _named(accuracy: Tensor) -> dict[str, float]:
    return {f"top{k}": value for k, value in zip(TOP, accuracy.tolist(), strict=True)}
