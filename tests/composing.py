"""Compose configs quickly: of what Hydra does, files are chosen and merged only once for the same choices.

Hydra takes a third of a second for it, and a command line composes its config two or three times. Only
configs of the project itself are kept: a test may write others and change them. They are kept as bytes,
whose unpickling takes a fifth of the time of a deep copy.
"""

from __future__ import annotations

import functools
import pickle
from typing import Any

import omegaconf.base
import pytest
import yaml
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from jepa_lm.utils.paths import CONF

KEPT = {"pkg://hydra.conf", f"file://{CONF}", "structured://"}
STATE = (
    "override_choices",
    "override_metadata",
    "append_group_defaults",
    "known_choices",
    "known_choices_per_group",
    "deletions",
)
"""What Hydra records of the chosen groups, and changes while it follows the lists of defaults."""
parse = omegaconf.base.parse
follow = defaults_list._create_defaults_list
merge = ConfigLoaderImpl._compose_config_from_defaults_list
_followed: dict[str, bytes] = {}
_merged: dict[str, bytes] = {}


def keep_merged_files(patch: pytest.MonkeyPatch) -> None:
    """Make Hydra keep the list of files for each choice of groups, and the merged config of each list.

    Files are read by the loader in C, and a reference such as `${seed}` is parsed once.
    """
    patch.setattr(yaml, "SafeLoader", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    patch.setattr(omegaconf.base, "parse", functools.cache(parse))
    patch.setattr(defaults_list, "_create_defaults_list", _follow_once)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", _merge_once)


def keep_nothing(patch: pytest.MonkeyPatch) -> None:
    """Leave Hydra and OmegaConf as they are."""
    patch.setattr(omegaconf.base, "parse", parse)
    patch.setattr(defaults_list, "_create_defaults_list", follow)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge)


def _follow_once(repo, config_name, overrides, prepend_hydra, skip_missing):
    if not _ours(repo):
        return follow(repo, config_name, overrides, prepend_hydra, skip_missing)
    state = {name: getattr(overrides, name) for name in STATE}
    key = repr((config_name, state, prepend_hydra, skip_missing))
    if key not in _followed:
        found = follow(repo, config_name, overrides, prepend_hydra, skip_missing)
        _followed[key] = pickle.dumps((found, state))
    found, state = pickle.loads(_followed[key])
    vars(overrides).update(state)
    return found


def _merge_once(self, defaults, repo):
    if not _ours(repo):
        return merge(self, defaults, repo)
    key = repr([vars(default) for default in defaults])
    if key not in _merged:
        _merged[key] = pickle.dumps(merge(self, defaults, repo))
    return pickle.loads(_merged[key])


def _ours(repo: Any) -> bool:
    return all(source.full_path() in KEPT for source in repo.get_sources())
