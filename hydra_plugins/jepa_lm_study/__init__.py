"""Hydra's plugin for our sweeper; `jepa_lm.study.execution` does the work.

Hydra accepts sweepers only from `hydra_plugins` and imports this module at every start, so it is small and
imports the rest when a sweep begins. Hydra executes the file before it is in `sys.modules`, where dataclasses
with postponed annotations fail: hence no `from __future__ import annotations`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ResumableSweeperConf:
    """Settings under `hydra.sweeper`."""

    _target_: str = "hydra_plugins.jepa_lm_study.ResumableSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    """Swept keys and their values from a `sweep=` file; the command line overrides them."""
    trials: Optional[int] = None  # noqa: UP045 (Hydra reads this annotation)
    """Number of trials of a search over the swept values, which may be intervals; None: a full grid."""
    sampler: str = "tpe"
    """Sampler of a search: `tpe` learns from the scores, `random` does not."""
    batch: int = 1
    """Trials of a search that run in parallel, for a launcher with several workers."""
    dry_run: bool = False
    """Print arms, runs, time and disk space, and stop."""


ConfigStore.instance().store(
    group="hydra/sweeper", name="resumable", node=ResumableSweeperConf, provider="jepa_lm"
)


class ResumableSweeper(Sweeper):
    """Runs the unfinished jobs of a sweep or study.

    Args:
        params: see `ResumableSweeperConf`. search: unused here; read from the config when the sweep starts.
    """

    def __init__(self, params: dict[str, Any], **search: Any) -> None:
        self.params = params
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra passes before it calls `sweep`."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Plan the jobs, run them and report; see `jepa_lm.study.execution.sweep`."""
        from jepa_lm.study.execution import sweep

        def checkpoint_bytes(config: Mapping[str, Any]) -> int:
            # Imports PyTorch, which a sweep of `jepa_lm.study` otherwise leaves to its jobs.
            from jepa_lm.artifact.teacher import opener
            from jepa_lm.training.estimate import checkpoint_bytes_of
            from jepa_lm.utils.trusted import Trust

            return checkpoint_bytes_of(config, opener(Trust.of(config)))

        def flops(config: Mapping[str, Any]) -> float:
            from jepa_lm.artifact.teacher import opener
            from jepa_lm.training.flops import flops_of
            from jepa_lm.utils.trusted import Trust

            return flops_of(config, opener(Trust.of(config)))

        def check_metric(config: Mapping[str, Any], metric: str) -> None:
            from jepa_lm.data.token_data import TokenData
            from jepa_lm.utils.config import build

            data = build("data", config["data"])
            assert isinstance(data, TokenData)
            data.check_metric(metric)

        assert self.hydra_context is not None
        assert self.launcher is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
        parts = (loader, self.launcher, checkpoint_bytes, flops, check_metric)
        return sweep(overrides, self.config, *parts)
