"""Fill in the settings of `logger.wandb` that are null, so that all W&B runs of one training are linked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.nested import at

LONGEST_TAG, LONGEST_NAME = 64, 128
"""Maximum number of characters that W&B accepts."""
NOT_IN_PROJECTS = "/\\#?%:"
SHARED = ("project", "entity", "group", "name", "tags")
"""Settings that the evaluation and the export of a run take over from its training."""


def wandb_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node `logger.wandb`; empty if there is none."""
    node = at(config, "logger", "wandb")
    return node if isinstance(node, dict) else {}


def shared_settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that all W&B runs of one training share.

    Args:
        run: the training's resolved config; the training need not have used W&B.
    """
    own = {"group": run.get("task_name"), "tags": run.get("tags")}
    return as_shared(own | _given(wandb_settings(run)))


def as_shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keep only shared settings of the right type, because they may come from any file."""
    found = {k: v for k in SHARED if isinstance(v := settings.get(k), str) and k != "tags"}
    tags = settings.get("tags")
    known = [tag for tag in tags if isinstance(tag, str) and tag] if isinstance(tags, list) else []
    return found | {"tags": known}


def fill_in(
    config: dict[str, Any],
    job_type: str,
    *,
    shared: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> None:
    """Fill in `logger.wandb` if the config has it; values set by the user stay.

    Args:
        config: resolved; it is changed in place. job_type: train, eval or export.
        shared: settings of the training run, see `shared_settings`; its tags are added.
        resume: resume the W&B run of the folder.

    Raises:
        UserError: a tag, a name or a project that W&B would reject.
    """
    settings = wandb_settings(config)
    if not settings:
        return
    _check(settings)
    of_run = as_shared(shared or {})
    tags = [*of_run.pop("tags", []), *(settings.get("tags") or [])]
    defaults = {"group": config["task_name"], "job_type": job_type, **of_run}
    settings |= {key: fitted(value) for key, value in defaults.items()} | _given(settings)
    settings |= {
        "tags": list(dict.fromkeys(fitted(tag, LONGEST_TAG) for tag in tags)),
        "resume": resume,
    }


def fitted(text: str, most: int = LONGEST_NAME) -> str:
    """Return a text short enough for W&B: a longer one is cut, and a digest keeps it unique."""
    if len(text) <= most:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    return f"{text[: most - 9]}-{digest}"


def _check(settings: Mapping[str, Any]) -> None:
    """Refuse settings that W&B would reject, some of them only at the end of the run."""
    for tag in settings.get("tags") or []:
        if not 1 <= len(tag) <= LONGEST_TAG:
            raise UserError(
                f"tags={tag[:80]}: has {len(tag)} characters; W&B allows 1 to {LONGEST_TAG}"
            )
    for key in ("project", "entity", "name", "group", "job_type"):
        value = settings.get(key) or ""
        if len(value) > LONGEST_NAME:
            raise UserError(
                f"logger.wandb.{key}={value[:80]}...: has {len(value)} characters; W&B allows at most "
                f"{LONGEST_NAME}"
            )
    project = settings.get("project") or ""
    if found := [sign for sign in NOT_IN_PROJECTS if sign in project]:
        raise UserError(
            f"logger.wandb.project={project}: W&B does not allow {' '.join(found)} in a project name"
        )


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}
