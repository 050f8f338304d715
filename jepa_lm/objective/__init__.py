"""Auxiliary losses that predict latents (JEPA) or tokens, composed from small parts in YAML."""

from jepa_lm.objective.latent_prediction import LatentPrediction
from jepa_lm.objective.step_context import StepContext
from jepa_lm.objective.token_prediction import TokenPrediction

__all__ = ["LatentPrediction", "StepContext", "TokenPrediction"]
