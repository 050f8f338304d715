"""The configs of the tests equal those that Hydra composes from the same overrides."""

from __future__ import annotations

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from jepa_lm.utils.paths import CONF
from tests.conftest import SMALL


@pytest.mark.parametrize(
    "words",
    [
        (*SMALL, "objective=vicreg", "jepa.weight=0.3", "optimizer.freeze=['model.bigram.*']"),
        ("experiment=pr832_byte_chunk", "debug=tiny", *SMALL),
        (*SMALL, "model/bigram=cantor", "model/head=untied", "~model.smear_gate", "++seed=4"),
    ],
)
def test_words_mean_what_they_mean_to_hydra(compose, tmp_path, words):
    where = f"paths.run_dir={tmp_path / 'run'}"
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        wanted = hydra.compose("train", overrides=[where, *words])
    assert OmegaConf.to_yaml(compose("train", *words)) == OmegaConf.to_yaml(wanted)
