"""JEPA objectives: auxiliary losses that predict latents, composed from small parts in YAML."""

from jepa_lm.objective.latent_prediction import LatentPrediction
from jepa_lm.objective.step_context import StepContext

__all__ = ["LatentPrediction", "StepContext"]
