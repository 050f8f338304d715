"""Configs from files: models, data and quantization of every preset, built as if read from a file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from torch import nn

from jepa_lm.model.checkpoint import empty_model
from jepa_lm.quantization.policy import Policy
from jepa_lm.utils import schema
from jepa_lm.utils.config import resolve
from jepa_lm.utils.paths import CONF
from jepa_lm.utils.trusted import Trust, build_part, check_part, plain
from tests.fuzz.material import Material
from tests.fuzz.mutations import damaged, junk

PARTS = ("model", "model", "data", "quantization")


class Reader:
    """Values of a preset's config, replaced one at a time by values that do not belong there."""

    allowed = ()

    def __init__(self, material: Material) -> None:
        schema.register()
        self.configs = []
        for preset in sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")):
            GlobalHydra.instance().clear()
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                words = [f"experiment={preset}", "debug=tiny", "paths.run_dir=run"]
                self.configs.append(resolve(hydra.compose("train", overrides=words)))
        self.tensors = [len(list(_model(c["model"]).parameters())) for c in self.configs]

    def mutant(self, number: int, rng: random.Random) -> tuple[str, Any]:
        which, part = rng.randrange(len(self.configs)), PARTS[number % len(PARTS)]
        node = self.configs[which][part]
        return part, (which, part, junk(rng) if rng.random() < 0.02 else damaged(node, rng))

    def put(self, mutant: Any, folder: Path) -> None:
        self.now = mutant

    def read(self, folder: Path) -> str | None:
        which, part, node = self.now
        if part == "model":
            _model(plain(node, "the file"), self.tensors[which])
        elif part == "data":
            check_part("data", plain(node, "the file"), "the file", Trust())
        else:
            policy = build_part(part, plain(node, "the file"), "the file", Trust())
            if isinstance(policy, Policy):
                policy.assign(_model(self.configs[which]["model"]))
        return None


def _model(node: Any, tensors: int = 1000) -> nn.Module:
    return empty_model(node, tensors, "the file", Trust())
