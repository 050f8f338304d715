"""Monitor of a token objective."""

from __future__ import annotations

from jepa_lm.objective.monitor import Monitor
from jepa_lm.objective.token_prediction import TokenPrediction


class TokenMonitor(Monitor):
    """Monitor that measures nothing at weight 0: there are no latents to look at."""

    name = "the token objective"

    def __init__(self, objective: TokenPrediction) -> None:
        super().__init__(objective, objective.diagnostics_every)

    def due(self, step: int) -> bool:
        """Return whether to measure at this step; an objective of weight 0 is never measured."""
        return bool(self.objective.weight) and super().due(step)
