"""The temperature that fits a model's scores best, searched on training tokens only (#903).

Logits are divided by it before the softmax. Two phases: a coarse grid, then steps around its best.
The validation text is never read here: a temperature fitted to it would be told the answers.
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
    """The best temperature on the first training tokens.

    Args:
        scorer: its own temperature is not used. train: the training tokens.
        seq_len, rows: of the windows.

    Returns:
        `temperature`, `tokens` it was searched on, and `nll` per token of each one tried.

    Raises:
        UserError: no score is a number.
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
        raise UserError("temperature=search: no score of the training text is a number")
    return min(found, key=found.__getitem__)


@torch.inference_mode()
def mean_nll(
    scorer: Scorer, windows: torch.utils.data.Dataset[Batch], temperatures: tuple[float, ...]
) -> dict[float, float]:
    """Nats per target at each temperature."""
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
