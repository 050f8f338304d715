"""The configs of the tests equal those that Hydra composes from the same overrides."""

from __future__ import annotations

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from jepa_lm.utils.paths import CONF
from tests import composing
from tests.conftest import SMALL

WORDS = [
    (*SMALL, "objective=vicreg", "jepa.weight=0.3", "optimizer.freeze=['model.bigram.*']"),
    ("experiment=pr832_byte_chunk", "debug=tiny", *SMALL),
    (*SMALL, "model/bigram=cantor", "model/head=untied", "~model.smear_gate", "++seed=4"),
]


def composed(*words: str, mode: RunMode = RunMode.RUN):
    loader = ConfigLoaderImpl(config_search_path=create_config_search_path(str(CONF)))
    return loader.load_configuration("train", overrides=list(words), run_mode=mode)


@pytest.fixture
def by_hydra(monkeypatch):
    """by_hydra(words...) composes without anything that was kept."""

    def compose(*words, **more):
        with monkeypatch.context() as patch:
            composing.keep_nothing(patch)
            return composed(*words, **more)

    return compose


@pytest.mark.parametrize("words", WORDS)
def test_words_mean_what_they_mean_to_hydra(compose, by_hydra, tmp_path, words):
    wanted = by_hydra(f"paths.run_dir={tmp_path / 'run'}", *words)
    with open_dict(wanted):
        del wanted["hydra"]
    assert OmegaConf.to_yaml(compose("train", *words)) == OmegaConf.to_yaml(wanted)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (RunMode.RUN, WORDS[1]),
        (RunMode.RUN, ("objective=recipes/pr1330", "~study", "seed=1")),
        (RunMode.MULTIRUN, ("objective=recipes/pr1330", "seed=1,2")),
        (RunMode.MULTIRUN, ("objective=recipes/pr1330", "study=ablation", "sweep=seeds")),
    ],
)
def test_kept_files_mean_what_they_mean_to_hydra(by_hydra, mode, words):
    composed("objective=recipes/pr1330")  # the kept one that is nearest
    wanted = OmegaConf.to_yaml(by_hydra(*words, mode=mode))
    for _ in range(2):
        assert OmegaConf.to_yaml(composed(*words, mode=mode)) == wanted


def test_a_config_that_was_given_out_is_not_the_next_one():
    composed("objective=vicreg").jepa.weight = 7
    assert composed("objective=vicreg").jepa.weight != 7


def test_an_unused_choice_is_refused_again():
    for _ in range(2):
        with pytest.raises(ConfigCompositionException, match="Could not override 'objektive"):
            composed("objective=vicreg", "objektive=lewm")
