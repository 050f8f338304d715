"""A search over settings: Optuna draws them, the jobs of the sweep score them.

The sampler is seeded with the run's seed and receives the scores in order, so the same command draws the
same settings again. An interrupted search therefore resumes like a sweep, and finished jobs are kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from jepa_lm.study.manifest import Group, Manifest
from jepa_lm.study.planner import Planner, slug
from jepa_lm.study.request import SEED, Compose, Request
from jepa_lm.study.runs import Run
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.metrics import METRICS

DIGITS = 4
"""Significant digits of a drawn number; more would only make folder names longer."""


class Search:
    """Draws settings and collects their scores.

    Args:
        request: what to search. Lists of values are drawn from; all values of `seed` run and are averaged.
        compose: returns the config of a command line.
        name: name of the sweep.
        settings: `hydra.sweeper`: trials, sampler, batch.

    Raises:
        UserError: a setting is out of range, there is nothing to search, or Optuna is not installed.
    """

    def __init__(self, request: Request, compose: Compose, name: str, settings: DictConfig) -> None:
        self.request, self.compose, self.name = request, compose, name
        self.trials, self.batch = settings.trials, settings.batch
        for key in ("trials", "batch"):
            if settings[key] < 1:
                raise UserError(f"hydra.sweeper.{key}={settings[key]}: at least 1")
        try:
            import optuna
        except ImportError as error:
            raise UserError(
                "hydra.sweeper.trials: a search needs Optuna; pip install 'jepa_lm[sweep]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.spaces = self._spaces()
        if not self.spaces:
            raise UserError(
                "hydra.sweeper.trials: nothing to search; give an interval, such as "
                "jepa.weight='interval(0,1)'"
            )
        self.seeds = request.seeds(compose)
        self.total = self.trials * len(self.seeds)
        """Jobs, if no settings are drawn twice."""
        samplers: dict[str, Any] = {
            "tpe": optuna.samplers.TPESampler,
            "random": optuna.samplers.RandomSampler,
        }
        if settings.sampler not in samplers:
            raise UserError(f"hydra.sweeper.sampler={settings.sampler}: one of tpe, random")
        metric = compose(request.fixed_with(request.cells()[0])).resolved(self.seeds[0])["metric"]
        larger = metric is not None and METRICS[metric].larger
        self.study = optuna.create_study(
            sampler=samplers[settings.sampler](seed=self.seeds[0]),
            direction="maximize" if larger else "minimize",
        )

    def _spaces(self) -> dict[str, Any]:
        from optuna import distributions as of

        found: dict[str, Any] = {
            key: of.CategoricalDistribution(values)
            for key, values in self.request.axes.items()
            if key != SEED
        }
        for key, interval in self.request.intervals.items():
            kind: Any = of.IntDistribution if interval.whole else of.FloatDistribution
            if interval.log and interval.low <= 0:
                raise UserError(f"{key}: tag(log, interval(...)) must start above 0")
            found[key] = kind(interval.low, interval.high, log=interval.log)
        return found

    def batches(self, folder: Path) -> Iterator[tuple[Manifest, dict[str, Any]]]:
        """Yield plans that grow by a batch; each must be run before the next is requested."""
        planner = Planner(self.compose)
        done = 0
        while done < self.trials:
            count = min(self.batch, self.trials - done)
            asked = [self.study.ask(self.spaces) for _ in range(count)]
            groups = [self._add(planner, trial.params) for trial in asked]
            yield planner.manifest(self.request, self.name, "sweep"), planner.configs
            for trial, group in zip(asked, groups, strict=True):
                scores = [Run(folder / run).value for run in group.runs.values()]
                known = [score for score in scores if score is not None]
                failed = len(known) < len(scores)
                self.study.tell(trial, None if failed else statistics.mean(known), **_state(failed))
            done += count

    def _add(self, planner: Planner, values: dict[str, Any]) -> Group:
        cell = {k: f"{v:.{DIGITS}g}" if isinstance(v, float) else str(v) for k, v in values.items()}
        composed = self.compose(self.request.fixed_with(cell))
        cell = planner.settle(cell, composed)
        return planner.add(slug(cell), composed, self.seeds, settings=cell)


def _state(failed: bool) -> dict[str, Any]:
    from optuna.trial import TrialState

    return {"state": TrialState.FAIL} if failed else {}
