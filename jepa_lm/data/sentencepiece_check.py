"""Read a SentencePiece model of unknown origin in a process of its own, before this one reads it.

The library is C++ and was not written for hostile files: a damaged model may crash it, or make it take all
memory or all time.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from functools import cache

from jepa_lm.data.tokenizers import SentencePieceTokenizer
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.process import fresh_python

MOST_BYTES = 1 << 24
"""Largest model that is read out of a file; one with 65,536 pieces has about 1 MB."""
MOST_MEMORY = 4 << 30
SECONDS = 120
"""Reading takes a tenth of a second; on a busy machine Python itself may need many to start."""
FINE = "fine"
SAMPLE = "A line of text, \u00e9\u4e2d\U0001f600\u2581, and another.\n"


@cache
def checked_tokenizer(model: bytes, vocab_size: int, source: str) -> SentencePieceTokenizer:
    """Return the tokenizer of a serialized model.

    Args:
        source: where the model comes from, for messages.

    Raises:
        UserError: too large, damaged, or of another size.
    """
    if len(model) > MOST_BYTES:
        raise UserError(
            f"{source}: a tokenizer of {len(model)} bytes; at most {MOST_BYTES} are read from a file"
        )
    with fresh_python(
        *("-m", __name__, str(vocab_size)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            answer, _ = process.communicate(model, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            answer = b""
        finally:
            process.kill()
    said = answer.decode(errors="replace").strip()
    if said == FINE:
        return SentencePieceTokenizer(model, vocab_size=vocab_size, source=source)
    raise UserError(said or f"{source}: its tokenizer is damaged (reading it failed)")


def main(vocab_size: int) -> None:
    """Read a model from stdin, use it, and print `FINE` or what is wrong with it."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    model = sys.stdin.buffer.read(MOST_BYTES)
    try:
        found = SentencePieceTokenizer(model, vocab_size=vocab_size, source="its tokenizer")
        found.decode(found.encode(SAMPLE).tolist())
        found.token_bytes()
    except UserError as error:
        print(error)
    else:
        print(FINE)


if __name__ == "__main__":
    main(int(sys.argv[1]))
