"""train, evaluate, export: plain functions of a composed config, called by the entry points.

Each function imports its command only when called: importing Lightning, which only training needs, takes
seconds.
"""

from __future__ import annotations

from omegaconf import DictConfig

from jepa_lm.utils.config import check, resolve
from jepa_lm.utils.values import check_values


def train(cfg: DictConfig) -> float | None:
    """See `jepa_lm.commands.train.train`; most mistakes in a config are refused before that is imported."""
    config = resolve(cfg)
    check(config, imports=False)
    check_values(config)
    from jepa_lm.commands.train import train

    return train(cfg)


def evaluate(cfg: DictConfig) -> float:
    """See `jepa_lm.commands.evaluate.evaluate`."""
    from jepa_lm.commands.evaluate import evaluate

    return evaluate(cfg)


def export(cfg: DictConfig) -> float:
    """See `jepa_lm.commands.export.export`."""
    from jepa_lm.commands.export import export

    return export(cfg)
