"""train, evaluate, export: plain functions of a composed config, called by the entry points.

Each imports what it needs when it is called: Lightning, which training alone needs, takes seconds.
"""

from __future__ import annotations

from omegaconf import DictConfig


def train(cfg: DictConfig) -> float | None:
    """See `jepa_lm.training.train`."""
    from jepa_lm.training import train

    return train(cfg)


def evaluate(cfg: DictConfig) -> float:
    """See `jepa_lm.evaluation.command.evaluate`."""
    from jepa_lm.evaluation.command import evaluate

    return evaluate(cfg)


def export(cfg: DictConfig) -> float:
    """See `jepa_lm.artifact.export.export`."""
    from jepa_lm.artifact.export import export

    return export(cfg)
