"""What `logger.wandb` leaves open (null) is filled in: W&B runs of one training run belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHARED = ("project", "entity", "group", "name", "tags")
"""Settings that the evaluation and the export of a run take from its training."""


def wandb_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The node `logger.wandb`; empty without it."""
    found = (config.get("logger") or {}).get("wandb") or {}
    assert isinstance(found, dict)
    return found


def shared_settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """What W&B runs of one training run share.

    Args:
        run: the resolved config of the training, which need not have used W&B.
    """
    settings = {"group": run["task_name"], "tags": run["tags"], **_given(wandb_settings(run))}
    return {key: settings[key] for key in SHARED if key in settings}


def fill_in(
    config: dict[str, Any],
    job_type: str,
    *,
    shared: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> None:
    """Fill in `logger.wandb`, where the config has one; what the user has set stays.

    Args:
        config: resolved; it is changed. job_type: train, eval or export.
        shared: what the training run has set, see `shared_settings`; its tags are added.
        resume: go on with the W&B run of the folder.
    """
    settings = wandb_settings(config)
    if not settings:
        return
    of_run = dict(shared or {})
    tags = [*of_run.pop("tags", []), *(settings.get("tags") or [])]
    defaults = {"group": config["task_name"], "job_type": job_type, **of_run}
    settings |= defaults | _given(settings)
    settings |= {"tags": list(dict.fromkeys(tags)), "resume": resume}


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}
