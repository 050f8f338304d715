"""One of two gloo ranks: its half of a batch through DDP, with gradients compared to the joint batch's.

Arguments: a file with configs by name (JSON); a file for the largest relative differences (JSON).
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from jepa_lm.artifact.teacher import opener
from jepa_lm.data.rows import RowCorpus
from jepa_lm.objective import StepContext
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import build
from jepa_lm.utils.trusted import Trust
from tests.objective.conftest import noise, random_batch
from tests.runs import fake_quantized

ROWS = 4
START = 7
"""Token that starts a document."""


def uneven() -> dict[str, torch.Tensor]:
    """Return the joint batch of both ranks; the second has fewer documents, answers and tokens."""
    batch = random_batch(rows=2 * ROWS)
    rows, length = batch["inputs"].shape
    batch["inputs"].masked_fill_(batch["inputs"] == START, START + 1)
    for row in range(rows - 2):
        batch["inputs"][row, 3 + 4 * row] = START
    chance = torch.linspace(0.9, 0.2, rows)[:, None]
    answers = torch.rand(rows, length, generator=torch.Generator().manual_seed(1)) < chance
    whole = torch.arange(length) < torch.arange(length, length - 2 * rows, -2)[:, None]
    answers = answers & whole
    weights = answers.float() / answers.float().mean()
    return {**batch, "answers": answers, "whole": whole, "weights": weights}


def batches(config: dict, rank: int) -> tuple[dict, dict]:
    """Return the joint batch and that of a rank."""
    data = build("data", config["data"])
    if not isinstance(data.corpus, RowCorpus):
        batch = uneven()
        return batch, {k: v[ROWS * rank : ROWS * (rank + 1)] for k, v in batch.items()}
    data.setup()
    return data.order_of(0, 1, 1).batch(None, 0), data.order_of(rank, 2, 1).batch(None, 0)


class Loss(torch.nn.Module):
    """Cross entropy and auxiliary loss of a task, the way its training step adds them."""

    def __init__(self, task: LanguageModelTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: dict, step_context: StepContext) -> torch.Tensor:
        task = self.task
        loss, _, components = task._losses(batch, step_context)
        for key, objective in task.auxiliaries.items():
            loss = loss + objective.total(components[key], step_context.clock)
        return loss if step_context.world_size == 1 else loss + task._touch()


def difference(config: dict, *, outside_ddp: bool = False) -> float:
    """Return the largest relative difference of a gradient between two ranks and one process."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    clock = ProgressClock(max_steps=10, max_time=None)
    task = LanguageModelTask(config, clock, opener(Trust()))
    noise(task)
    batch, mine = batches(config, rank)
    if task.objective is not None:
        task.objective.document_start = START
    parameters = {n: p for n, p in task.named_parameters() if p.requires_grad}

    stored = fake_quantized(task).swapped if task.policy.training.ever else nullcontext
    with stored():
        Loss(task)(batch, StepContext(clock)).backward()
    joint = {n: None if p.grad is None else p.grad.clone() for n, p in parameters.items()}
    task.zero_grad()
    step_context = StepContext(clock, rank=rank, world_size=2)
    if outside_ddp:
        Loss(task)(mine, step_context).backward()  # the planted bug: the ranks exchange nothing
    else:
        wrapped = DistributedDataParallel(Loss(task), broadcast_buffers=False)
        with stored():
            wrapped(mine, step_context).backward()
    scale = max(g.norm().item() for g in joint.values() if g is not None)
    worst = 0.0
    for name, p in parameters.items():
        # A parameter that no loss reads has no gradient in one process and zero in two.
        want, got = (torch.zeros_like(p) if g is None else g for g in (joint[name], p.grad))
        worst = max(worst, ((got - want).norm() / (want.norm() + 1e-3 * scale)).item())
    return worst


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    with open(sys.argv[1]) as file:
        configs = json.load(file)
    found = {name: difference(config) for name, config in configs.items()}
    found["outside_ddp"] = difference(configs["lewm"], outside_ddp=True)
    for name in ("lewm", "info_nce"):
        local = {**configs[name], "jepa": {**configs[name]["jepa"], "global_statistics": False}}
        found[f"{name}_local"] = difference(local)
    if dist.get_rank() == 0:
        with open(sys.argv[2], "w") as file:
            json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
