"""A model that was trained before, as a target uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from jepa_lm.model import LanguageModel


@dataclass(frozen=True)
class Teacher:
    """A model that was loaded from a file.

    Args:
        path: the file. sha256: of its bytes. tokenizer: fingerprint of the model's tokenizer.
        temperature: what its logits are divided by, where an artifact says so.
    """

    model: LanguageModel
    path: str
    sha256: str
    tokenizer: str
    temperature: float = 1.0

    def record(self) -> dict[str, str]:
        """Return what a run records of its teacher."""
        return {"path": self.path, "sha256": self.sha256, "tokenizer": self.tokenizer}


OpenTeacher: TypeAlias = Callable[[str], Teacher]
"""Loads the model that a setting names. Only a command that trains has one: nothing else opens the file."""
