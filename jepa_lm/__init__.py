"""jepa_lm: train small language models with and without latent prediction, and compare them fairly."""

__version__ = "0.1.0"
