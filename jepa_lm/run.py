"""train, evaluate, export: plain functions of a composed config, called by the entry points.

Each function imports its command only when called, after it has refused most mistakes in the config:
importing PyTorch and Lightning takes seconds.
"""

from __future__ import annotations

from omegaconf import DictConfig

from jepa_lm.utils import gpus
from jepa_lm.utils.config import check, check_node, check_schema, resolve
from jepa_lm.utils.finding import check_model_files, require_path
from jepa_lm.utils.schema import EvalConfig, ExportConfig
from jepa_lm.utils.values import check_values


def train(cfg: DictConfig) -> float | None:
    """See `jepa_lm.commands.train.train`."""
    with gpus.not_asked():
        config = resolve(cfg)
    check(config, imports=False)
    check_values(config)
    if not config["describe"]:  # which reads no files
        check_model_files("train", config["ckpt_path"])
        from jepa_lm.data.first_checks import check_text

        check_text(config["data"])
    from jepa_lm.commands.train import train_resolved

    return train_resolved(resolve(cfg), cfg)


def evaluate(cfg: DictConfig) -> float:
    """See `jepa_lm.commands.evaluate.evaluate`."""
    config = resolve(cfg)
    check_schema(config, EvalConfig)
    check_node("logger", config["logger"], imports=False)
    check_model_files("eval", config["ckpt_path"], config["artifact_path"])
    for key in ("path", "val_path"):
        require_path(f"data.{key}", config["data"][key])
    from jepa_lm.commands.evaluate import evaluate

    return evaluate(cfg)


def export(cfg: DictConfig) -> float:
    """See `jepa_lm.commands.export.export`."""
    config = resolve(cfg)
    check_schema(config, ExportConfig)
    for name in ("logger", "quantization"):
        check_node(name, config[name], imports=False)
    check_model_files("export", config["ckpt_path"])
    from jepa_lm.commands.export import export

    return export(cfg)
