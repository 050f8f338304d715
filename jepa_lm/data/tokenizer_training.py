"""Train a SentencePiece BPE on the training text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from jepa_lm.utils.console import busy
from jepa_lm.utils.errors import UserError

LINE = 1 << 20
"""Most characters of a line given to the trainer, which skips lines longer than 16 MiB."""
RESERVED = "\u2585"
"""The trainer's own symbol for an unknown character; it skips a line that contains one."""


def train_bpe(text: Iterable[str], *, vocab_size: int, train_bytes: int) -> bytes:
    """Return a serialized model that preserves every byte: no normalisation, byte tokens for rare characters.

    Args:
        text: blocks in order. train_bytes: bytes of text to read.

    Raises:
        UserError: no tokenizer of this size can be trained on this text. Errors of reading it pass through.
    """
    out, failed = io.BytesIO(), list[BaseException]()

    def lines() -> Iterator[str]:
        try:
            yield from training_lines(text, train_bytes)
        except BaseException as error:  # the trainer would replace it by an error of its own
            failed.append(error)
            raise

    try:
        with busy("training the tokenizer"):
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines(),
                model_writer=out,
                model_type="bpe",
                vocab_size=vocab_size,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                character_coverage=0.9999,
                max_sentence_length=1 << 24,
                unk_id=0,
                bos_id=1,
                eos_id=2,
                pad_id=-1,
                minloglevel=2,
            )
    except (RuntimeError, OSError) as error:
        if failed:
            raise failed[0] from None
        raise UserError(
            f"data.tokenizer.vocab_size={vocab_size}: no tokenizer can be trained on this text: "
            f"{_reason(str(error))}, or use data=byte260, which needs none"
        ) from error
    if failed:
        raise failed[0]
    return out.getvalue()


def _reason(said: str) -> str:
    """Turn the trainer's message into a short statement of the problem and its remedy."""
    if "sentences_.empty()" in said:
        return "it contains only line ends; give more text"
    if at_most := re.search(r"too high .*<= (\d+)", said):
        return f"it supports at most {at_most[1]} pieces; set that many or fewer, give more text"
    if at_least := re.search(r"smaller than required_chars. \S+ vs (\d+)", said):
        return f"its bytes and characters need {at_least[1]} pieces; set that many or more"
    return f"{' '.join(said.split())}; set another size"


def training_lines(blocks: Iterable[str], limit: int) -> Iterator[str]:
    """Yield the lines of the first `limit` bytes of text, however it is cut into blocks, without line ends.

    Lines that the trainer would skip are cut.
    """
    left, line = limit, ""
    for block in blocks:
        data = block.encode()
        if len(data) >= left:
            block = data[:left].decode(errors="ignore")
        left -= len(data)
        *ended, line = (line + block).split("\n")
        for text in ended:
            yield from _cut(text)
        if len(line) >= LINE:
            whole = len(line) - len(line) % LINE
            yield from _cut(line[:whole])
            line = line[whole:]
        if left <= 0:
            break
    yield from _cut(line)


def _cut(line: str) -> Iterator[str]:
    for at in range(0, len(line), LINE):
        yield from filter(None, line[at : at + LINE].split(RESERVED))
