"""What the ranks of a run tell each other at log points, in one collective: time, signals, health."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jepa_lm.distributed import gathered, maximum
from jepa_lm.guard import report

if TYPE_CHECKING:
    from jepa_lm.lit import LanguageModelTask


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
    shared = [elapsed if rank == 0 else 0.0, task.stop.asked, found is not None]
    if trainer.world_size > 1:
        shared = maximum(*shared, device=task.device)
    elapsed, asked, bad = shared
    task.stop.agreed = int(asked)
    if bad:
        everyone = gathered(found) if trainer.world_size > 1 else [found]
        findings = [f._replace(rank=r) for r, f in enumerate(everyone) if f is not None]
        newest = getattr(trainer.checkpoint_callback, "newest", None)
        raise report(findings, newest, ranks=trainer.world_size)
    return elapsed
