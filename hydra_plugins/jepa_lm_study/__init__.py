"""The sweeper that Hydra finds here; see `jepa_lm.study.execution` for what it does.

Hydra imports this module at each start and accepts sweepers from `hydra_plugins` alone, so it is small
and imports the rest when a sweep begins. It executes the file before `sys.modules` knows it, where a
dataclass with postponed annotations fails: no `from __future__ import annotations`.
"""

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
    """Settings below `hydra.sweeper`."""

    _target_: str = "hydra_plugins.jepa_lm_study.ResumableSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    """Swept keys and their values, as a `sweep=` file gives them; the command line wins."""
    trials: Optional[int] = None  # noqa: UP045 (Hydra reads this annotation)
    """Search instead: so many draws of the swept values, which may be intervals."""
    sampler: str = "tpe"
    """Of a search: tpe learns from the scores, random does not."""
    batch: int = 1
    """Draws of a search that are run together, for a launcher with several workers."""


ConfigStore.instance().store(
    group="hydra/sweeper", name="resumable", node=ResumableSweeperConf, provider="jepa_lm"
)


class ResumableSweeper(Sweeper):
    """Runs the jobs of a sweep or of a study that are not finished yet.

    Args:
        params: see `ResumableSweeperConf`. search: read from the config when it begins.
    """

    def __init__(self, params: dict[str, Any], **search: Any) -> None:
        self.params = params
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before `sweep`."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Plan, run and report; see `jepa_lm.study.execution.sweep`."""
        from jepa_lm.study.execution import sweep

        assert self.hydra_context is not None
        assert self.launcher is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
        return sweep(overrides, self.config, loader, self.launcher)
