"""Parts of an objective that the command line can swap."""

from __future__ import annotations

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from jepa_lm.objective.normalisations import Normalisation
from jepa_lm.utils.config import check, resolve
from jepa_lm.utils.paths import CONF
from tests.objective.conftest import OBJECTIVES, RECIPES

DISTANCES = sorted(path.stem for path in (CONF / "jepa/distance").glob("*.yaml"))


@pytest.mark.parametrize("objective", [*OBJECTIVES, *RECIPES])
def test_every_objective_takes_another_distance(compose, objective):
    """A distance replaces the objective's own as a whole: no setting of the other is left."""
    text = (CONF / f"objective/{objective}.yaml").read_text()
    other = next(name for name in DISTANCES if f"distance: {name}\n" not in text)
    alone = OmegaConf.to_container(OmegaConf.load(CONF / f"jepa/distance/{other}.yaml"))
    config = resolve(compose("train", f"objective={objective}", f"jepa/distance={other}"))
    assert config["jepa"]["distance"] == alone
    check(config)


def test_a_normalisation_is_swapped_added_and_removed(compose):
    def target(*words: str) -> type | None:
        chosen = resolve(compose("train", *words))["jepa"]["normalisation"]
        return None if chosen is None else get_object(chosen["_target_"])

    assert target("objective=patch").__name__ == "L2"
    assert target("objective=patch", "jepa/normalisation=rms").__name__ == "RMS"
    assert target("objective=vicreg", "+jepa/normalisation=layer_norm").__name__ == "LayerNorm"
    assert target("objective=patch", "~jepa/normalisation") is None
    names = (path.stem for path in (CONF / "jepa/normalisation").glob("*.yaml"))
    for name in names:
        assert issubclass(target("objective=patch", f"jepa/normalisation={name}"), Normalisation)
