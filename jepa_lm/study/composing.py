"""Compose the configs of many jobs, with Hydra's slow part done once for each choice of groups.

Hydra first merges the chosen files of the groups, which takes half a second, and then sets values. Jobs of
a sweep mostly differ in values, so the merged config is kept and copied.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

from jepa_lm.study.losses import NODES, losses_of
from jepa_lm.study.request import Composed
from jepa_lm.utils.config import check, resolve
from jepa_lm.utils.values import check_values


class Composer:
    """Returns the same as Hydra's `load_sweep_config` for the overrides of a job, but faster.

    Args:
        loader: Hydra's config loader of the command.
        master: config of the whole command.
    """

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._kept: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, words: Sequence[str]) -> DictConfig:
        """Return a new config; its `hydra` node has the chosen groups, but not the values.

        Raises:
            HydraException: an override fits no group or setting.
        """
        parsed = OverridesParser.create().parse_overrides(list(words))
        chosen = tuple(w for w, o in zip(words, parsed, strict=True) if self._chooses(o))
        if chosen not in self._kept:
            self._kept[chosen] = self._loader.load_sweep_config(self._master, list(chosen))
        composed = copy.deepcopy(self._kept[chosen])
        values = [override for override in parsed if not self._chooses(override)]
        self._loader._apply_overrides_to_config(values, composed)
        return composed

    def _chooses(self, override: Override) -> bool:
        """Return whether an override chooses a file of a group, or is for Hydra itself."""
        if override.is_hydra_override():
            return True
        is_group = self._loader.repository.group_exists(override.key_or_group)
        return is_group and not isinstance(override.value(), dict)


def composed_with(composer: Composer, words: Sequence[str]) -> Composed:
    """Compose the config of a job's command line once; its seed can be changed without composing again."""
    words = list(words)
    composed = composer(words)
    objective = str(composed.hydra.runtime.choices.get("objective"))
    losses = losses_of(composed)
    without = [f"{node}.weight" for node in NODES if node not in losses]
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in without]
    if kept != words:
        words, composed = kept, composer(kept)
    with open_dict(composed):
        del composed["hydra"]
    composed.paths.run_dir = "."  # only known when the job runs

    def resolved(seed: int) -> dict[str, Any]:
        composed.seed = seed
        return resolve(composed)

    first = resolved(composed.seed)
    check(first)
    check_values(first)
    return Composed(tuple(words), objective, frozenset(losses), composed.seed, resolved)
