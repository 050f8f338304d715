"""Callbacks of a run; those with a state keep it in the checkpoint themselves (`Callback.state_dict`)."""

from __future__ import annotations

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

AnyCallback = TypeVar("AnyCallback", bound=Callback)


def callback_of(trainer: Trainer, kind: type[AnyCallback]) -> AnyCallback | None:
    """Return the trainer's callback of this class, or None."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]
