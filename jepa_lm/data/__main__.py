"""Prepare the data of a run without training: `python -m jepa_lm.data data=text data.path=FOLDER`.

It downloads what is missing, trains the tokenizer, tokenizes the text and checks the result, as train.py
would with the same overrides. A run that needs the same data then starts at once.
"""

from __future__ import annotations

import sys

import numpy as np

import jepa_lm
from jepa_lm.data.first_checks import check_text
from jepa_lm.data.token_data import TokenData
from jepa_lm.utils.config import build, check, resolve
from jepa_lm.utils.crash import command
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.output import say
from jepa_lm.utils.parser import Parser
from jepa_lm.utils.paths import program
from jepa_lm.utils.values import check_values

AT_ONCE = 1 << 22
"""Tokens that are read at a time to count documents."""


def _prepare(words: list[str]) -> None:
    parser = Parser(prog="python -m jepa_lm.data", description=__doc__)
    parser.add_argument(
        "overrides", nargs="*", help=f"as for {program('train')}, such as data=fineweb_sp1024"
    )
    parser.add_argument("--config-dir", help="a folder with YAML and modules of your own")
    asked = parser.parse_args(words)
    config = resolve(jepa_lm.compose(asked.overrides, asked.config_dir))
    check(config, imports=False)
    check_values(config)
    check_text(config["data"])
    data = build("data", config["data"])
    if not isinstance(data, TokenData):
        raise UserError(f"data: a {type(data).__name__} needs no preparation")
    data.prepare_data()
    data.setup()
    for caution in data.cautions():
        warn(caution)
    for line in told(data):
        say(line)


def told(data: TokenData) -> list[str]:
    """Return lines about data that is open: the tokenizer, each split, and where the files are."""
    assert data.prepared is not None
    tokenizer = data.tokenizer
    found = [
        f"tokenizer: {type(tokenizer).__name__}, {tokenizer.vocab_size:,} tokens, "
        f"{tokenizer.fingerprint[:12]}"
    ]
    for name, split, paths in (
        ("training", "train", data.prepared.train),
        ("validation", "val", data.prepared.val),
    ):
        tokens = data.streams[split].total
        parts = [f"{tokens:,} tokens"]
        if data.prepared.texts is not None:
            size = data.prepared.texts[split].bytes
            parts.append(f"{size:,} bytes of text")
        if tokenizer.bos_id is not None:
            documents = _documents(data, split)
            parts.append(f"{documents:,} document{'s' * (documents != 1)}")
        count, folder = len(paths), paths[0].parent
        found.append(f"{name}: {', '.join(parts)}, in {count} file{'s' * (count > 1)} in {folder}")
    return found


def _documents(data: TokenData, split: str) -> int:
    """Count the tokens that begin a document."""
    stream, found = data.streams[split], 0
    for start in range(0, stream.total, AT_ONCE):
        ids = np.empty(min(AT_ONCE, stream.total - start), dtype=np.int64)
        stream.read(start, ids)
        found += int((ids == data.tokenizer.bos_id).sum())
    return found


def main(words: list[str]) -> int:
    """Prepare the data. Return exit code 0, or 2 after one line of error."""
    return command(lambda: _prepare(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
