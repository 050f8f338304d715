"""How often a run reads its training split: known before it starts under a budget of steps alone.

    passes = steps x what a step takes / what a pass has

in the unit of `data.order`: tokens of the challenge's stream, windows of the shuffled one. A step takes its
micro-batches on all ranks. Ghost steps are not counted: their data comes again as that of the first steps.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Passes:
    """How often a run reads its training split.

    Args:
        step: what an optimizer step takes. whole: what a pass has, in the same unit.
        remedy: what gives the run more text, as a setting.
    """

    step: int
    whole: int
    remedy: str

    def after(self, steps: int) -> float:
        """Passes in so many optimizer steps."""
        return steps * self.step / self.whole

    @property
    def first(self) -> int:
        """Optimizer steps within the first pass."""
        return self.whole // self.step

    def will_repeat(self, max_steps: int | None, max_time: float | None) -> bool:
        """Whether the budget is sure to begin a second pass; seconds may end a run before."""
        return max_steps is not None and max_time is None and max_steps * self.step > self.whole

    def announced(self, max_steps: int | None, max_time: float | None, done: int) -> str:
        """What the budget means for the data, for the first lines of a run.

        Args:
            done: steps of the run that this one goes on with.
        """
        so_far = f", {figure(self.after(done))} so far" if done else ""
        if max_steps is None:
            return (
                f"a pass over the training split takes {self.whole / self.step:,.0f} steps{so_far}"
            )
        most = "" if max_time is None else "at most "
        return f"passes over the training split: {most}{figure(self.after(max_steps))}{so_far}"

    def warning(self, steps: int | None = None) -> str:
        """What to know once a second pass is sure, or has begun.

        Args:
            steps: of the whole run, where they are known.
        """
        in_all = "" if steps is None else f", {figure(self.after(steps))} passes in all"
        return (
            f"the training split lasts for {self.first:,} steps: from then on the run trains on text that it "
            f"has seen{in_all}; {self.remedy}, or a smaller budget avoids that"
        )


def figure(passes: float) -> str:
    """A number of passes as it is shown."""
    return f"{passes:,.2f}" if passes >= 0.1 else f"{passes:.2g}"
