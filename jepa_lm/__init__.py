"""jepa_lm: train small language models with and without latent prediction, and compare honestly."""

__version__ = "0.1.0"
