"""train, evaluate, export: plain functions of a composed config, called by the entry points."""

from jepa_lm.artifact.export import export
from jepa_lm.evaluation.command import evaluate
from jepa_lm.training import train

__all__ = ["evaluate", "export", "train"]
