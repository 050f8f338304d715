"""Search the temperature with the lowest loss, on training tokens only (#903).

Logits are divided by it before the softmax. The search has two phases: a coarse grid, then steps around its
best value. The validation text is never read here: a temperature fitted to it would have seen the answers.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from jepa_lm.data.stream import Batch, TokenStream
from jepa_lm.data.windows import StandardWindows
from jepa_lm.evaluation.scoring import Scorer
from jepa_lm.model import token_nll
from jepa_lm.utils.errors import UserError

TOKENS = 65_536
COARSE = (0.5, 0.7, 0.85, 0.95, 1.0, 1.1, 1.3, 1.5, 2.0)
FINE = (-0.06, -0.04, -0.02, 0.02, 0.04, 0.06)


def search_temperature(
    scorer: Scorer, train: TokenStream, *, seq_len: int, rows: int
) -> dict[str, Any]:
    """Return the best temperature on the first training tokens.

    Args:
        scorer: its own temperature is not used. train: the training tokens.
        seq_len, rows: length of a window and windows per batch.

    Returns:
        `temperature`, the number of `tokens` used, and `nll` per token for each temperature tried.

    Raises:
        UserError: all scores are NaN or infinite.
    """
    windows = StandardWindows(train, seq_len=seq_len, rows=rows, limit=TOKENS + 1)
    tried = mean_nll(scorer, windows, COARSE)
    tried |= mean_nll(scorer, windows, tuple(round(_best(tried) + step, 4) for step in FINE))
    best = _best(tried)
    return {
        "temperature": best,
        "tokens": windows.tokens - 1,
        "nll": {f"{t:g}": tried[t] for t in sorted(tried)},
    }


def _best(tried: dict[float, float]) -> float:
    found = {t: nll for t, nll in tried.items() if math.isfinite(nll)}
    if not found:
        raise UserError("temperature=search: all scores of the training text are NaN or infinite")
    return min(found, key=found.__getitem__)


@torch.inference_mode()
def mean_nll(
    scorer: Scorer, windows: torch.utils.data.Dataset[Batch], temperatures: tuple[float, ...]
) -> dict[float, float]:
    """Return the nats per target at each temperature."""
    scorer.prepare()
    sums = torch.zeros(len(temperatures) + 1, dtype=torch.float64, device=scorer.device)
    for i in range(len(windows)):  # type: ignore[arg-type]
        batch = {name: t.to(scorer.device) for name, t in windows[i].items()}
        with scorer.autocast():
            logits, _ = scorer.model(batch["inputs"])
            for k, temperature in enumerate(temperatures):
                sums[k] += token_nll(logits / temperature, batch["targets"]).sum(
                    dtype=torch.float64
                )
        sums[-1] += batch["targets"].numel()
    *nats, tokens = sums.tolist()
    return {t: n / tokens for t, n in zip(temperatures, nats, strict=True)}
