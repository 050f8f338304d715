"""Compose configs quickly: Hydra reads a file once, and merges files once for the same choices.

Hydra takes a third of a second for it, and a command line composes its config two or three times. Only
configs of the project itself are kept: a test may write others and change them. They are kept as bytes,
whose unpickling takes a fifth of the time of a deep copy.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import omegaconf.base
import pytest
import yaml
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_store import ConfigStore

from jepa_lm.utils.paths import CONF

SHARED = "JEPA_LM_TESTS_COMPOSED"
"""Environment variable with the folder in which the processes of a session share what they keep."""
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
read = ConfigRepository.load_config
choices = defaults_list._create_interpolation_map
follow = defaults_list._create_defaults_list
merge = ConfigLoaderImpl._compose_config_from_defaults_list
_kept: dict[tuple[str, str], bytes] = {}


def keep_merged_files(patch: pytest.MonkeyPatch) -> None:
    """Make Hydra keep each file, the list of files for each choice of groups, and the merged config of each.

    Files are read by the loader in C, and a reference such as `${seed}` is parsed once. Two things are left
    out that Hydra does in vain: it copies all schemas for every composition, and collects the choices of
    every file for references in its list of defaults, which almost none has.
    """
    patch.setattr(yaml, "SafeLoader", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    patch.setattr(omegaconf.base, "parse", functools.cache(parse))
    patch.setattr(ConfigStore, "__deepcopy__", lambda self, memo: self, raising=False)
    patch.setattr(ConfigRepository, "load_config", _read_once)
    patch.setattr(defaults_list, "_create_interpolation_map", _choices_if_asked)
    patch.setattr(defaults_list, "_create_defaults_list", _follow_once)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", _merge_once)


def keep_nothing(patch: pytest.MonkeyPatch) -> None:
    """Leave Hydra and OmegaConf as they are."""
    patch.setattr(omegaconf.base, "parse", parse)
    patch.delattr(ConfigStore, "__deepcopy__")
    patch.setattr(ConfigRepository, "load_config", read)
    patch.setattr(defaults_list, "_create_interpolation_map", choices)
    patch.setattr(defaults_list, "_create_defaults_list", follow)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge)


def _read_once(self, config_path):
    if not _ours(self):
        return read(self, config_path)
    return _once(("file", config_path), lambda: read(self, config_path))


def _choices_if_asked(overrides, defaults, self_added):
    asked = any(default.is_interpolation() for default in defaults)
    return choices(overrides, defaults, self_added) if asked else None


def _follow_once(repo, config_name, overrides, prepend_hydra, skip_missing):
    words = (config_name, overrides, prepend_hydra, skip_missing)
    if not _ours(repo):
        return follow(repo, *words)
    state = {name: getattr(overrides, name) for name in STATE}
    key = ("list", repr((config_name, state, prepend_hydra, skip_missing)))
    found, state = _once(key, lambda: (follow(repo, *words), state))
    vars(overrides).update(state)
    return found


def _merge_once(self, defaults, repo):
    if not _ours(repo):
        return merge(self, defaults, repo)
    key = ("merged", repr([vars(default) for default in defaults]))
    return _once(key, lambda: merge(self, defaults, repo))


def _once(key: tuple[str, str], make: Callable[[], Any]) -> Any:
    """Return a copy of what was made for this key, here or by another process of the session."""
    if key not in _kept:
        _kept[key] = _made_once(hashlib.sha256(repr(key).encode()).hexdigest(), make)
    return pickle.loads(_kept[key])


def _made_once(name: str, make: Callable[[], Any]) -> bytes:
    place = Path(os.environ[SHARED], name) if SHARED in os.environ else None
    if place is not None and place.exists():
        return place.read_bytes()
    made = pickle.dumps(make())
    if place is not None:
        written = place.with_name(f"{name}.{os.getpid()}")
        written.write_bytes(made)
        written.rename(place)
    return made


def _ours(repo: Any) -> bool:
    return all(source.full_path() in KEPT for source in repo.get_sources())
