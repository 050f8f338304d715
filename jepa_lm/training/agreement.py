"""Ranks share elapsed time, stop signals and non-finite values at log points, in one collective."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jepa_lm.training.guard import report
from jepa_lm.utils.collectives import gathered, maximum
from jepa_lm.utils.errors import EveryRankError

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


def agree(task: LanguageModelTask, elapsed: float) -> float:
    """Agree on rank 0's time and the most urgent signal, and check for NaN; every rank must call this.

    Args:
        elapsed: seconds on this rank's clock.

    Returns:
        Seconds on rank 0's clock.

    Raises:
        EveryRankError: a loss or gradient since the last call is NaN or infinite; names step, component
            and rank.
    """
    trainer, rank = task.trainer, task.global_rank
    found = task.guard.first()
    stood = task.compiler.stood
    shared = [
        elapsed + stood if rank == 0 else 0.0,
        stood,
        task.stop.asked,
        found is not None,
    ]
    if trainer.world_size > 1:
        # After a fit the module is on the CPU, but the ranks still communicate through their device.
        shared = maximum(*shared, device=trainer.strategy.root_device)
    with_pauses, longest, asked, bad = shared
    task.stop.agreed = int(asked)
    if bad:
        everyone = gathered(found) if trainer.world_size > 1 else [found]
        findings = [f._replace(rank=r) for r, f in enumerate(everyone) if f is not None]
        newest = next(
            (c.newest for c in trainer.checkpoint_callbacks if hasattr(c, "newest")), None
        )
        raise report(findings, newest, ranks=trainer.world_size)
    # While one rank compiles, the others wait for it, whether or not their clocks stand still.
    return with_pauses - longest


def require_one_start(step: int, checkpoint: str | None) -> None:
    """Check that all ranks resume from the same checkpoint; with separate folders they may not.

    Raises:
        EveryRankError: they differ; names what each rank found.
    """
    starts = gathered((step, None if checkpoint is None else Path(checkpoint).name))
    if len(set(starts)) > 1:
        told = "; ".join(f"rank {r}: {name or 'none'}" for r, (_, name) in enumerate(starts))
        raise EveryRankError(
            f"ckpt_path: the ranks found different checkpoints ({told}); give all ranks the "
            "same hydra.run.dir on a shared disk"
        )
