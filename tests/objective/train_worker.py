"""One of several gloo ranks, started as torchrun does: trains every config of a folder by `train`.

Argument: a folder of `NAME.yaml`, resolved training configs, taken in order of name. The results of a
run's `Record` go beside each: `NAME.json` (losses) and `NAME.pt` (gradients).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from jepa_lm.commands.train import train
from jepa_lm.training import summary
from tests.ranks import run_ranks

Losses = dict[str, list[float]]
Gradients = dict[str, dict[int, dict[str, torch.Tensor]]]


class Record(Callback):
    """Keeps the training loss of each step, averaged over ranks, and the gradients of some steps.

    Args:
        path: path of the files, without suffix. steps: counted from 1.
    """

    def __init__(self, *, path: str, steps: Sequence[int] = ()) -> None:
        self.path, self.steps = Path(path), steps
        self.losses: list[torch.Tensor] = []
        self.gradients: dict[int, dict[str, torch.Tensor]] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """After DDP's average, before clipping."""
        step = trainer.global_step + 1
        if step in self.steps:
            named = pl_module.named_parameters()
            self.gradients[step] = {n: p.grad.clone() for n, p in named if p.grad is not None}

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Keep the loss as it was trained on."""
        self.losses.append(arguments[2]["loss"])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Average the losses over ranks; gradients are the same on all."""
        losses = torch.stack(self.losses).double()
        if trainer.world_size > 1:
            dist.all_reduce(losses)
        if trainer.is_global_zero:
            found = (losses / trainer.world_size).tolist()
            self.path.with_suffix(".json").write_text(json.dumps(found))
            torch.save(self.gradients, self.path.with_suffix(".pt"))


def recorded(folder: Path, name: str, *, ranks: int, steps: Sequence[int] = ()) -> list[str]:
    """Return overrides that let a run on this many ranks record under a name."""
    more = [] if ranks == 1 else ["trainer=ddp_sim", f"trainer.devices={ranks}"]
    record = f"{Record.__module__}.{Record.__name__}"
    return [
        *more,
        f"paths.run_dir={folder}/{name}",
        f"+callbacks.record._target_={record}",
        f"+callbacks.record.path={folder}/{name}",
        f"+callbacks.record.steps={list(steps)}",
    ]


def train_all(folder: Path, configs: dict[str, dict[str, Any]], *, ranks: int) -> None:
    """Train these resolved configs one after the other, in one set of processes."""
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    run_ranks("tests.objective.train_worker", str(folder), ranks=ranks, timeout=600)


def found_in(folder: Path, names: Sequence[str]) -> tuple[Losses, Gradients]:
    """Return losses by step, and gradients by step and parameter, of each run."""
    losses = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    return losses, {name: torch.load(folder / f"{name}.pt") for name in names}


def main() -> None:
    torch.set_num_threads(1)
    summary.flops_of_run = lambda task, steps: {}  # seconds for each run, and no rank's business
    # Lightning then takes rank and world size from the environment and starts no processes.
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "tests",
        "LOCAL_RANK": os.environ["RANK"],
        "LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"],
        "GROUP_RANK": "0",
    }
    for path in sorted(Path(sys.argv[1]).glob("*.yaml")):
        train(OmegaConf.load(path))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
