"""Configs and models for benchmarks, composed as on the command line."""

from __future__ import annotations

from unittest import mock

import hydra
import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from jepa_lm.artifact import prediction
from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.tokenizers import TokenBytes
from jepa_lm.evaluation.scoring import Scorer
from jepa_lm.model import LanguageModel
from jepa_lm.model.roles import parameter_roles
from jepa_lm.quantization.formats import Format
from jepa_lm.utils import schema
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.paths import CONF


def compose(*overrides: str) -> DictConfig:
    """Return the config of `python train.py OVERRIDES`."""
    schema.register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=list(overrides))


def language_model(*overrides: str) -> LanguageModel:
    """Return `train.py`'s model with these overrides, with noise on every weight so that no part is inert."""
    config = resolve(compose(*overrides, "paths.run_dir=unused"))
    torch.manual_seed(0)
    model: LanguageModel = build("model", config["model"])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model


def scorer_of(model: LanguageModel) -> Scorer:
    """Return a scorer on the CPU in float32 that counts one byte for every token."""
    V = model.vocab_size
    table = TokenBytes(np.ones(V, dtype=np.int64), np.zeros(V, bool), np.zeros(V, bool))
    return Scorer(model, ByteCounter(table), torch.device("cpu"), "32-true")


def drawn_model(*overrides: str) -> tuple[LanguageModel, dict[str, Format]]:
    """Return a model with weights drawn like trained ones (`artifact/prediction.py`), and its formats."""
    config = resolve(compose(*overrides, "paths.run_dir=unused"))
    model: LanguageModel = build("model", config["model"])
    rng, roles = np.random.default_rng(0), parameter_roles(model)
    with mock.patch.object(prediction, "DRAWN", 1 << 40):
        for name, p in model.named_parameters():
            p.data = prediction.draw(name, roles[name], p.shape, rng)
    return model, build("quantization", config["quantization"]).assign(model)
