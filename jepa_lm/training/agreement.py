"""What the ranks of a run tell each other at log points, in one collective: time, signals, health."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jepa_lm.training.guard import report
from jepa_lm.utils.collectives import gathered, maximum
from jepa_lm.utils.errors import EveryRankError

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


def agree(task: LanguageModelTask, elapsed: float) -> float:
    """Settle rank 0's time, the most urgent signal and whether all is well; every rank has to call.

    Args:
        elapsed: seconds by this rank's clock.

    Returns:
        rank 0's seconds.

    Raises:
        EveryRankError: a loss or gradient since the last call is no number, naming step, component, rank.
    """
    trainer, rank = task.trainer, task.global_rank
    found = task.guard.first()
    compiling = task.compiler.seconds
    shared = [
        elapsed + compiling if rank == 0 else 0.0,
        compiling,
        task.stop.asked,
        found is not None,
    ]
    if trainer.world_size > 1:
        # After a fit the module is on the CPU; the ranks still talk by their device.
        shared = maximum(*shared, device=trainer.strategy.root_device)
    with_compiling, longest, asked, bad = shared
    task.stop.agreed = int(asked)
    if bad:
        everyone = gathered(found) if trainer.world_size > 1 else [found]
        findings = [f._replace(rank=r) for r, f in enumerate(everyone) if f is not None]
        newest = next(
            (c.newest for c in trainer.checkpoint_callbacks if hasattr(c, "newest")), None
        )
        raise report(findings, newest, ranks=trainer.world_size)
    return with_compiling - longest  # while one rank compiles, the others wait for it


def require_one_start(step: int, checkpoint: str | None) -> None:
    """Every rank has to go on from the same place: with folders of their own they may not.

    Raises:
        EveryRankError: naming what each rank found.
    """
    starts = gathered((step, None if checkpoint is None else Path(checkpoint).name))
    if len(set(starts)) > 1:
        told = "; ".join(f"rank {r}: {name or 'none'}" for r, (_, name) in enumerate(starts))
        raise EveryRankError(
            f"ckpt_path: the ranks found different checkpoints ({told}); give all of them the same "
            "hydra.run.dir on a disk that they share"
        )
