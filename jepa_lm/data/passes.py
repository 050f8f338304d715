"""How often a run reads its training split; known before the run starts if its budget is in steps alone.

    passes = steps x amount per step / amount per pass

in the unit of `data.order`: tokens for the challenge's stream, windows for the shuffled order. A step reads
its micro-batches on all ranks. Ghost steps are not counted: the first steps read the same data again.
"""

from __future__ import annotations

from dataclasses import dataclass

from jepa_lm.utils.errors import UserError

ROUNDING = 0.02
"""Share by which a pass may be shorter than was counted: windows and targets at its end."""


@dataclass(frozen=True)
class Passes:
    """How often a run reads its training split.

    Args:
        step: amount that an optimizer step reads. whole: amount of a pass, in the same unit.
        remedy: the setting that gives the run more text, for the warning.
    """

    step: int
    whole: int
    remedy: str

    def after(self, steps: int) -> float:
        """Return the passes in this many optimizer steps."""
        return steps * self.step / self.whole

    @property
    def first(self) -> int:
        """Number of optimizer steps within the first pass."""
        return self.whole // self.step

    def check_epochs(self, max_epochs: float | None, max_steps: int | None) -> None:
        """Check that a pass is as long as `trainer.max_epochs` was told.

        Raises:
            UserError: there is less to read.
        """
        if max_epochs is None or max_steps is None or max_steps == 1:
            return
        if (real := self.after(max_steps)) > max_epochs * (1 + ROUNDING):
            raise UserError(
                f"trainer.max_epochs={max_epochs}: {max_steps} steps would be {figure(real)} passes, because "
                "the training split is shorter than the config says; set its real size, or use "
                f"{self.remedy}"
            )

    def will_repeat(self, max_steps: int | None, max_time: float | None) -> bool:
        """Return whether the budget is sure to begin a second pass; a limit in seconds may end it earlier."""
        return max_steps is not None and max_time is None and max_steps * self.step > self.whole

    def announced(self, max_steps: int | None, max_time: float | None, done: int) -> str:
        """Say how often the budget reads the data, for the first lines of a run.

        Args:
            done: finished steps of the run that this one resumes.
        """
        so_far = f", {figure(self.after(done))} so far" if done else ""
        if max_steps is None:
            return (
                f"a pass over the training split takes {self.whole / self.step:,.0f} steps{so_far}"
            )
        most = "" if max_time is None else "at most "
        return f"passes over the training split: {most}{figure(self.after(max_steps))}{so_far}"

    def warning(self, steps: int | None = None) -> str:
        """Return the warning for a second pass that is certain or has begun.

        Args:
            steps: steps of the whole run, if known.
        """
        in_all = "" if steps is None else f", {figure(self.after(steps))} passes in all"
        return (
            f"the training split lasts for {self.first:,} steps: after that the run trains on text that it "
            f"has already seen{in_all}; {self.remedy} or a smaller budget avoids this"
        )


def figure(passes: float) -> str:
    """Format a number of passes."""
    return f"{passes:,.2f}" if passes >= 0.1 else f"{passes:.2g}"
