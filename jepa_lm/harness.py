"""Benchmarks by lm-evaluation-harness: `python -m jepa_lm.harness artifact.br --tasks arc_easy`.

It needs the extra `harness` (lm_eval). All words after the model are lm_eval's own. From Python, importing
this module makes the model `jepa_lm` known to lm_eval, with `path`, `device` and `trust` of `jepa_lm.load`.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jepa_lm.api import load
from jepa_lm.utils.crash import command
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.output import tell
from jepa_lm.utils.parser import Parser
from jepa_lm.utils.paths import PACKAGE
from jepa_lm.utils.quoting import one_line

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as error:
    missing = UserError("lm_eval is not installed; pip install 'jepa_lm[harness]'")
    if __name__ != "__main__":
        raise missing from error
    tell(f"error: {missing}")
    raise SystemExit(missing.exit_code) from None

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

NAME = "jepa_lm"
ANSWER = 256
"""Most tokens of an answer where the task does not say, as for the harness's other models."""
GENERATION = ("until", "max_gen_toks", "do_sample", "temperature")
"""Settings of generation that are known here."""


@register_model(NAME)
class HarnessModel(LM):
    """A model as the harness asks it.

    Args:
        path, device, trust: see `jepa_lm.load`; `trust` may be one module.
        batch_size: windows scored at a time; `auto` for as many as validation does.
        max_batch_size: not needed; the harness gives it to every model.

    Raises:
        UserError: see `jepa_lm.load`, and a batch size that is neither a number nor `auto`.
    """

    def __init__(
        self,
        path: str,
        device: str = "auto",
        trust: str | Sequence[str] = (),
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        automatic = str(batch_size).startswith("auto")
        if not automatic and not (str(batch_size).isdigit() and int(batch_size) > 0):
            raise UserError(f"batch_size={batch_size}: a number from 1 on, or auto")
        self._rows = None if automatic else int(batch_size)
        modules = [trust] if isinstance(trust, str) else trust
        self.model = load(str(path), device, modules)
        self._device = self.model.device

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return for each context and continuation the log of its probability, and whether it is greedy."""
        pairs = [request.args for request in requests]
        return list(self.model.log_likelihoods(pairs, self._rows))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return for each text the log of its probability as one document."""
        pairs = [("", text) for (text,) in (request.args for request in requests)]
        return [nats for nats, _ in self.model.log_likelihoods(pairs, self._rows)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return for each context its continuation, up to the first of the texts `until`."""
        asked = ((request.args[0], request.args[1]) for request in requests)
        return [self._answer(*pair, number) for number, pair in enumerate(asked)]

    def _answer(self, context: str, settings: dict[str, Any], number: int) -> str:
        for key in settings.keys() - GENERATION:
            raise UserError(
                f"generation_kwargs.{key}={settings[key]}: not known here; use {', '.join(GENERATION)}"
            )
        until = settings.get("until") or []
        return self.model.continuation(
            context,
            tokens=settings.get("max_gen_toks", ANSWER),
            temperature=settings.get("temperature", 1.0) if settings.get("do_sample") else 0.0,
            seed=torch.initial_seed() + number,  # the harness's --seed
            until=[until] if isinstance(until, str) else until,
        )


def _evaluate(words: list[str]) -> None:
    from lm_eval.__main__ import cli_evaluate

    parser = Parser(
        prog="python -m jepa_lm.harness",
        usage="%(prog)s MODEL [WORDS OF lm_eval ...]",
        description="Run benchmarks of lm-evaluation-harness on a model.",
        epilog="All other words are lm_eval's: see `lm_eval run --help`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model", help="an artifact, a checkpoint, a run's folder, last, or hf://USER/NAME"
    )
    asked, theirs = parser.parse_known_args(words)
    # As JSON, because names of folders may hold commas. Theirs come last: they may set the batch size.
    settings = json.dumps({"path": asked.model})
    ours = ["--model", NAME, "--model_args", settings, "--batch_size", "auto"]
    sys.argv = ["lm_eval", "run", *ours, *theirs]
    try:
        cli_evaluate()
    except Exception as error:
        if _ours(error):
            raise
        raise UserError(f"lm_eval: {type(error).__name__}: {one_line(error)}") from error


def _ours(error: Exception) -> bool:
    """Return whether the error was raised in this package, or in what it called, below `cli_evaluate`."""
    below = traceback.extract_tb(error.__traceback__)[1:]
    return any(Path(frame.filename).is_relative_to(PACKAGE) for frame in below)


def main(words: list[str]) -> int:
    """Print lm_eval's table. Return exit code 0, or 2 after one line of error."""
    return command(lambda: _evaluate(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
