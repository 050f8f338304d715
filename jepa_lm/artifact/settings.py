"""Settings of export.py, checked before any file is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jepa_lm.artifact.codecs import COMPRESSORS
from jepa_lm.artifact.layout import check_streams
from jepa_lm.artifact.round_trip import check_protocols
from jepa_lm.artifact.size import check_code
from jepa_lm.artifact.tokenizer import PLACES
from jepa_lm.quantization.policy import Policy
from jepa_lm.utils.config import build, check_node
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.trusted import Trust, build_part

LEAST = {"cap_bytes": 1, "max_tokens": 2, "stride": 1}
OR_NULL = {"max_tokens": ", or null for all", "stride": ", or null for the run's own"}


def check_settings(settings: dict[str, Any]) -> None:
    """Check the `export` settings.

    Raises:
        UserError: a setting is invalid; names it.
    """
    check_code(settings["code"])
    check_streams(settings["streams"])
    check_protocols(settings["protocols"])
    if settings["tokenizer"] not in (None, *PLACES):
        raise UserError(
            f"export.tokenizer={settings['tokenizer']}: one of {', '.join(PLACES)}, or null: inside, unless "
            "it is published with the shards"
        )
    for codec in settings["codecs"]:
        if codec not in COMPRESSORS:
            raise UserError(f"export.codecs={codec}: one of {', '.join(COMPRESSORS)}")
    if not settings["codecs"]:
        raise UserError(f"export.codecs=[]: at least one of {', '.join(COMPRESSORS)}")
    for key, least in LEAST.items():
        value = settings[key]
        if value is not None and value < least:
            raise UserError(f"export.{key}={value}: at least {least}{OR_NULL.get(key, '')}")
    if math.isnan(settings["max_bpb_loss"]):
        raise UserError("export.max_bpb_loss=nan: must be a number; .inf accepts any loss")


def policy(node: dict[str, Any], asked: Any, path: Path, trust: Trust) -> Policy:
    """Build the quantization policy; settings that come from a checkpoint are built as untrusted.

    Args:
        node: see `quantization`. asked: value on the command line. path: the checkpoint.

    Raises:
        UserError: the node builds no policy, or its settings are invalid.
    """
    if asked is not None and "_target_" in asked:
        check_node("quantization", node)
        found = build("quantization", node)
    else:
        found = build_part("quantization", node, f"ckpt_path={path}", trust)
    if not isinstance(found, Policy):
        raise UserError(f"quantization: builds a {type(found).__name__}, not a Policy")
    return found


def quantization(asked: Any, of_run: dict[str, Any]) -> dict[str, Any]:
    """Return the policy's config: `asked` if it has a `_target_`, else the run's own, changed by `asked`.

    Raises:
        UserError: `asked` is not a config node.
    """
    if asked is None:
        return of_run
    if not isinstance(asked, dict):
        raise UserError(f"quantization={asked}: a policy of conf/quantization, for example int6")
    return asked if "_target_" in asked else _merged(of_run, asked)


def _merged(node: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a plain copy with changes; OmegaConf would resolve references written in the file."""
    found = dict(node)
    for key, value in changes.items():
        below = found.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            found[key] = _merged(below, value)
        else:
            found[key] = value
    return found
