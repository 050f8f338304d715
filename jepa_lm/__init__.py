"""jepa_lm: train small language models with and without latent prediction, and compare them fairly.

cfg = jepa_lm.compose(["objective=vicreg", "jepa.weight=0.1"])
trained = jepa_lm.train(cfg)
model = jepa_lm.load(trained.folder)
print(model.generate("It was"), model.score("A text."))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa_lm.api import Trained, compose, load, runs, train
    from jepa_lm.utils.errors import UserError

__version__ = "0.1.0"
__all__ = ["Trained", "UserError", "compose", "load", "runs", "train"]


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is first used: the commands do not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "jepa_lm.utils.errors" if name == "UserError" else "jepa_lm.api"
    return getattr(importlib.import_module(room), name)


def __dir__() -> list[str]:
    """Return the names of the interface, too, which a notebook completes."""
    return sorted({*globals(), *__all__})
