"""Jobs' configs equal those that Hydra composes from the same overrides."""

from __future__ import annotations

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from jepa_lm.study.composing import Composer
from jepa_lm.utils.paths import CONF
from tests.conftest import SMALL

WORDS = [
    ("objective=vicreg", "jepa.weight=0.3", "seed=4"),
    ("objective=vicreg", "jepa.weight=0"),
    ("model/bigram=cantor", "~model.smear_gate", "+tags=[a,b]", "++model.dim=48"),
    ("experiment=pr832_byte_chunk", "debug=tiny", "hydra.sweep.subdir=x", "data.path='a b=c'"),
]


@pytest.fixture
def loader():
    return ConfigLoaderImpl(config_search_path=create_config_search_path(str(CONF)))


@pytest.fixture
def master(loader):
    found = loader.load_configuration("train", overrides=list(SMALL), run_mode=RunMode.MULTIRUN)
    with open_dict(found.hydra):
        found.hydra.job.config_name = "train"
    return found


def test_words_mean_what_they_mean_to_hydra(loader, master):
    composer = Composer(loader, master)
    for words in (*WORDS, *WORDS):  # the second time from the cache
        wanted, got = loader.load_sweep_config(master, [*SMALL, *words]), composer([*SMALL, *words])
        for config in (wanted, got):
            config.paths.run_dir = "."
            with open_dict(config):
                del config["hydra"]
        assert OmegaConf.to_yaml(got) == OmegaConf.to_yaml(wanted), words


def test_a_config_that_was_given_out_is_not_the_next_one(loader, master):
    composer = Composer(loader, master)
    composer(["objective=vicreg"]).jepa.weight = 7
    assert composer(["objective=vicreg"]).jepa.weight != 7


@pytest.mark.parametrize("word", ["jepa.wieght=1", "objektive=vicreg", "seed=x"])
def test_a_word_that_fits_nothing_is_refused_as_by_hydra(loader, master, word):
    said = []
    for compose in (lambda w: loader.load_sweep_config(master, w), Composer(loader, master)):
        with pytest.raises(ConfigCompositionException) as error:
            compose(["objective=vicreg", word])
        said.append(str(error.value))
    assert said[0] == said[1]
