"""A guard for configs that come out of files: they may only name classes of this package.

Hydra's `instantiate` calls whatever `_target_` names, which is fine for a user's own YAML and an
open door in a downloaded checkpoint or artifact.
"""

from __future__ import annotations

import importlib
from typing import Any

from jepa_lm.errors import UserError


def require_own_classes(config: Any, package: str, source: str) -> None:
    """Refuse a config that names anything but classes defined inside `package`.

    Args:
        config: plain containers. package: for example `jepa_lm.model`. source: for the message.

    Raises:
        UserError: naming the first `_target_` that is not such a class.
    """
    if isinstance(config, list):
        for entry in config:
            require_own_classes(entry, package, source)
    elif isinstance(config, dict):
        if "_target_" in config and not _is_own_class(config["_target_"], package):
            raise UserError(
                f"{source}: its config asks to call {config['_target_']!r}, which is no class of "
                f"{package}; refused"
            )
        for entry in config.values():
            require_own_classes(entry, package, source)


def _is_own_class(target: Any, package: str) -> bool:
    module_name, _, name = str(target).rpartition(".")
    if not f"{module_name}.".startswith(f"{package}."):
        return False
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError:
        return False
    return isinstance(found, type) and f"{found.__module__}.".startswith(f"{package}.")
