"""The life of a run's loggers: they receive its config, its summary and how it ended, and are closed.

Each job of a sweep closes its loggers before the next job starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa_lm.loggers.run_logger import Ending, RunLogger
from jepa_lm.loggers.settings import fill_in
from jepa_lm.utils.config import build
from jepa_lm.utils.errors import warn
from jepa_lm.utils.provenance import Resumed
from jepa_lm.utils.signals import StopRequest

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

FINISHED = Ending("finished", 0)
FAILED = Ending("failed", 1)
ENDED_AT_ONCE = Ending("interrupted", 130)
"""A second Ctrl-C stopped the run immediately."""


class RunLoggers:
    """The loggers of one run. Their errors at its end are warnings and do not fail the run."""

    def __init__(self, loggers: Iterable[Logger]) -> None:
        self.loggers = list(loggers)

    def goes_on(self, step: int) -> None:
        """Prepare the loggers for a run that resumes after this many steps.

        Raises:
            UserError: existing records cannot be read.
        """
        for logger in self.loggers:
            if isinstance(logger, RunLogger):
                logger.goes_on(step)

    def config(self, config: Mapping[str, Any]) -> None:
        """Log the config that the run was started with; this starts a W&B run.

        Raises:
            UserError: W&B cannot be reached, or the user is not logged in.
        """
        for logger in self.loggers:
            logger.log_hyperparams(dict(config))

    def summary(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Log the final figures, and the small files that hold them."""
        self._each(lambda keeper: keeper.log_summary(summary, files))

    def artifact(self, name: str, files: Sequence[Path]) -> None:
        """Log a version of a model."""
        self._each(lambda keeper: keeper.log_artifact(name, files))

    def close(self, ending: Ending) -> None:
        """Close the loggers; each writes what it still holds."""
        self._each(lambda keeper: keeper.close(ending))

    def _each(self, call: Callable[[RunLogger], None]) -> None:
        for logger in self.loggers:
            if not isinstance(logger, RunLogger):
                continue
            try:
                call(logger)
            except Exception as error:  # any error of a service: the run folder holds the records
                warn(f"{type(logger).__name__}: {error}")


@contextmanager
def recording(
    loggers: Iterable[Logger],
    config: Mapping[str, Any],
    stop: StopRequest | None = None,
    resumed: Resumed | None = None,
) -> Iterator[RunLoggers]:
    """Log the config on entry; on exit report to the loggers how the run ended, and close them.

    Args:
        stop: knows whether a signal ended the run.
        resumed: the checkpoint that the run resumes from, if it does.
    """
    records = RunLoggers(loggers)
    ending = ENDED_AT_ONCE
    try:
        if resumed is not None:
            records.goes_on(resumed.step)
        records.config(config)
        yield records
        ending = FINISHED
    except Exception as error:
        ending = FAILED
        records.summary({"status": "failed", "error": str(error)})
        raise
    finally:
        if ending is not FAILED and stop is not None and stop.signum is not None:
            ending = Ending("interrupted", 128 + stop.signum, preempted=stop.hurried)
        records.close(ending)


@contextmanager
def recording_job(
    config: dict[str, Any],
    job_type: str,
    *,
    run: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> Iterator[RunLoggers]:
    """Like `recording`, for an evaluation or export and linked to the training run it belongs to.

    Args:
        config: the job's resolved config. job_type: eval or export.
        run: the training's resolved config; empty if unknown.
        shared: W&B settings that all runs of that training share.
    """
    fill_in(config, job_type, shared=shared)
    loggers = build("logger", config["logger"] or {}).values()
    with recording(loggers, {**config, "run": dict(run)}) as records:
        yield records
