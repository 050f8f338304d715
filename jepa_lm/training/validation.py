"""Recording of validation scores, and the repeat of a validation that a kill interrupted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jepa_lm.utils.errors import EveryRankError

if TYPE_CHECKING:
    from jepa_lm.training.module import LanguageModelTask


def record_scores(task: LanguageModelTask) -> None:
    """Pass the latest scores to callbacks and loggers, unless they have been logged for this step.

    Raises:
        EveryRankError: a score is NaN or infinite.
    """
    step, resumed = task.trainer.global_step, task.resumed
    figures = {"train/seconds": task.clock.elapsed}
    for name, score in task.scores.items():
        end = "" if name == "shipped" else f"_{name}"
        if not math.isfinite(score.nll):
            raise EveryRankError(
                f"val/nll{end} is {score.nll} at step {step}: the model's output is NaN or infinite; resume "
                "from an earlier checkpoint with lower learning rates (optimizer.groups.*.lr)"
            )
        figures |= {f"val/nll{end}": score.nll, f"val/bpb{end}": score.bpb}
    task.log_dict(figures, logger=False)
    if resumed is not None and resumed.validated and resumed.step == step:
        return
    for logger in task.loggers:
        logger.log_metrics(figures, step=max(step - 1, 0))
        logger.save()  # so that a kill before the next checkpoint does not lose them


def catch_up(task: LanguageModelTask) -> None:
    """Run the validation that was due at a resumed run's checkpoint, which is written before validation.

    It runs before the next step, so that it is recorded under its own step and chooses the weights that ship.
    A run that has used up its budget is scored at its end anyway. Every rank must call this.
    """
    resumed, trainer = task.resumed, task.trainer
    every = task.config["trainer"]["val_check_interval"]
    if resumed is None or trainer.should_stop or every is None or resumed.step % every:
        return
    chooses = task.averages.ship == "best"  # by scores that no checkpoint holds
    if trainer.strategy.broadcast(resumed.validated) and not chooses:
        return
    loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    first = connector._first_loop_iter
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first
