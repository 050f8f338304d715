"""The language model and its parts; everything here ships in the artifact."""

from jepa_lm.model.cross_entropy import token_nll, z_loss
from jepa_lm.model.language_model import Embedded, Encoded, LanguageModel, Mask

__all__ = ["Embedded", "Encoded", "LanguageModel", "Mask", "token_nll", "z_loss"]
