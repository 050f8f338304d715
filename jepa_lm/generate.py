"""Continue a prompt: `python -m jepa_lm.generate artifact.br --prompt "It was" --tokens 100`."""

from __future__ import annotations

import sys

from jepa_lm.api import load
from jepa_lm.utils.crash import command
from jepa_lm.utils.parser import Parser


def _generate(words: list[str]) -> None:
    parser = Parser(prog="python -m jepa_lm.generate", description=__doc__)
    parser.add_argument(
        "model", help="an artifact, a checkpoint, a run's folder, last, or hf://USER/NAME"
    )
    parser.add_argument("--prompt", help="the text to continue; without it, a new document begins")
    parser.add_argument("--tokens", type=int, default=200, help="most tokens to draw")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the most likely token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--trust", action="append", default=[], help="a module of your own that the file names"
    )
    asked = parser.parse_args(words)
    model = load(asked.model, asked.device, asked.trust)
    print(model.generate(asked.prompt, asked.tokens, asked.temperature, asked.seed))


def main(words: list[str]) -> int:
    """Print the text. Return exit code 0, or 2 after one line of error."""
    return command(lambda: _generate(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
