"""Attach a study's report to W&B, as a run of job type `report` in the study's group."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa_lm.loggers.run_logger import Ending
from jepa_lm.loggers.settings import as_shared, fitted
from jepa_lm.loggers.wandb_run import WandbRun


def attach_report(
    html: Path,
    *,
    settings: Mapping[str, Any],
    group: str,
) -> None:
    """Log a report; a rebuilt report goes to the same W&B run.

    Args:
        html: the report, complete in one file. The id of its W&B run is kept beside it.
        settings: the node `logger.wandb` of the study's runs: project, entity, tags, offline.
        group: W&B group of the study.

    Raises:
        UserError: W&B is not installed or cannot be reached.
    """
    shared = as_shared(settings)
    run = WandbRun(
        project=shared.get("project"),
        entity=shared.get("entity"),
        name=fitted(f"{group} report"),
        group=fitted(group),
        job_type="report",
        tags=shared["tags"],
        offline=bool(settings.get("offline")),
        log_model=False,
        save_dir=str(html.parent),
        resume=True,
    )
    import wandb  # installed: WandbRun would have failed otherwise

    ending = Ending("failed", 1)
    try:
        run.experiment.log({"report": wandb.Html(str(html))})
        run.log_summary({}, [html])
        ending = Ending("finished", 0)
    finally:
        run.close(ending)
