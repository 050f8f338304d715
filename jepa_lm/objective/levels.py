"""Several alignments at once, each with its own predictor: one step ahead and a stretch ahead, as in HiLP.

A distance that is meant for one of them says so, see `jepa_lm.objective.distances.Sum`.
Legend: B batch, N latents of a row, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from jepa_lm.objective.alignment import Alignment, Given, Pair, apply, told
from jepa_lm.objective.predictors import Predictor
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, checked


class Windows(Alignment):
    """The mean of the last `size` latents predicts the mean of the next `size`.

    A pair does not count if a document starts after the first position of the two windows, or one of them
    reaches into padding.
    """

    @checked
    def __init__(self, *, size: Count) -> None:
        super().__init__()
        self.size = size

    def check(self, latents: int) -> None:
        if latents < 2 * self.size:
            raise UserError(
                f"jepa.alignment.size={self.size}: two windows need {2 * self.size} latents, and a sequence "
                f"has only {latents}"
            )

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, given: Given
    ) -> list[Pair]:
        source, ahead = (self._means(x) for x in (context[:, : -self.size], target[:, self.size :]))
        # Text before padding has no gap, so the last position of the two windows decides.
        rows, *_ = told(given, target, slice(2 * self.size - 1, None))
        if given.starts is not None and given.starts.shape[1] == context.shape[1]:
            later = given.starts[:, 1:].unfold(
                1, 2 * self.size - 1, 1
            )  # [B, N - 2 size + 1, 2 size - 1]
            within = ~later.any(-1)
            rows = within.float() if rows is None else rows * within
        return [Pair(apply(predictor, source), ahead, source, 1.0, rows)]

    def _means(self, x: Tensor) -> Tensor:
        """[B, N, D] -> means of `size` neighbours [B, N - size + 1, D]."""
        return x.unfold(1, self.size, 1).mean(-1)


class PerLevel(Predictor):
    """A predictor for each alignment of `Levels`, by the same names."""

    def __init__(self, *, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.takes_tokens = any(getattr(part, "takes_tokens", False) for part in parts.values())


class Levels(Alignment):
    """Several alignments of the same latents, each with the predictor of its name in a `PerLevel`.

    The shares of each alignment's pairs sum to 1; distances weigh the levels against each other.

    Args:
        alignments: by name.

    Raises:
        UserError: there is none.
    """

    def __init__(self, *, alignments: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not alignments:
            raise UserError("jepa.alignment.alignments={}: needs at least one")
        self.alignments = nn.ModuleDict(alignments)
        self.needs_mask = any(part.needs_mask for part in self._parts().values())
        self.needs_tokens = any(part.needs_tokens for part in self._parts().values())

    def _parts(self) -> dict[str, Alignment]:
        return dict(self.alignments.items())  # type: ignore[arg-type]

    def check(self, latents: int) -> None:
        for part in self._parts().values():
            part.check(latents)

    def check_predictor(self, predictor: Predictor | None) -> None:
        names = ", ".join(self._parts())
        if not isinstance(predictor, PerLevel) or predictor.parts.keys() != self._parts().keys():
            raise UserError(
                f"jepa.predictor: Levels needs a PerLevel with one of each name: {names}"
            )
        for name, part in self._parts().items():
            part.check_predictor(predictor.parts[name])  # type: ignore[arg-type]

    def forward(
        self, predictor: Predictor | None, context: Tensor, target: Tensor, given: Given
    ) -> list[Pair]:
        assert isinstance(predictor, PerLevel)
        return [
            pair._replace(level=name)
            for name, part in self._parts().items()
            for pair in part(predictor.parts[name], context, target, given)
        ]
