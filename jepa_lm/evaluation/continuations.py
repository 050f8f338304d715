"""Log-likelihoods of texts after other texts, as benchmarks with choices compare them.

Legend: N tokens, T window length, S scored positions, B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_lm.data.tokenizers import Tokenizer
from jepa_lm.evaluation.sampling import start_of_text
from jepa_lm.evaluation.scoring import Scorer
from jepa_lm.model import token_nll
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.quoting import cut


class Continued(NamedTuple):
    """Tokens of a context and of its continuation."""

    ids: list[int]
    """All N of them; the first has no token before it."""
    scored: int
    """S, how many at the end are the continuation's."""


class LogLikelihood(NamedTuple):
    """What a model thinks of a continuation."""

    nats: float
    """Log of its probability after the context, 0 or less."""
    greedy: bool
    """Whether it is what the model itself would write at temperature 0."""


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Continued:
    """Return a context and a continuation as tokens of one document.

    White space at the end of the context counts as the continuation's, because a word and the space before it
    are one token. Both are encoded together: where a token spans the two, it is scored.

    Raises:
        UserError: the continuation has no token.
    """
    start = start_of_text(tokenizer)  # so that the first token of a text has one before it
    before = [*start, *_ids(tokenizer, context.rstrip())]
    ids = [*start, *_ids(tokenizer, context + continuation)]
    pairs = zip(before, ids, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if len(ids) == shared:
        raise UserError(f"continuation={cut(continuation, 80)!r}: has no token; nothing to score")
    return Continued(ids, len(ids) - shared)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode(text)]


def log_likelihoods(
    scorer: Scorer, texts: Sequence[Continued], *, seq_len: int, rows: int
) -> list[LogLikelihood]:
    """Score the continuations, in windows of at most `seq_len` = T inputs.

    Windows are as full as the text allows: a continuation of up to T tokens is scored in one, with the end of
    its context; of a longer one, each window but the last scores T tokens.

    Args:
        rows: B, windows scored at a time; those of similar length are padded together.
    """
    scorer.prepare()
    windows = [
        (number, window)
        for number, text in enumerate(texts)
        for window in _windows(text, seq_len=seq_len)
    ]
    windows.sort(key=lambda window: -len(window[1].ids))
    nats, greedy = [0.0] * len(texts), [True] * len(texts)
    for first in scorer.shown(range(0, len(windows), rows)):
        batch = windows[first : first + rows]
        found = _score([window for _, window in batch], scorer)
        for (number, _), (lost, likeliest) in zip(batch, found, strict=True):
            nats[number] -= lost
            greedy[number] &= likeliest
    return [LogLikelihood(*pair) for pair in zip(nats, greedy, strict=True)]


def _windows(text: Continued, *, seq_len: int) -> Iterator[Continued]:
    done, N = len(text.ids) - text.scored, len(text.ids)
    while done < N:
        end = min(done + seq_len, N)
        yield Continued(text.ids[max(0, end - seq_len - 1) : end], end - done)
        done = end


@torch.inference_mode()
def _score(windows: Sequence[Continued], scorer: Scorer) -> Iterator[tuple[float, bool]]:
    """Yield the nats of each window's targets, and whether all of them are the likeliest tokens."""
    longest = max(len(window.ids) for window in windows)
    tokens = torch.zeros(len(windows), longest, dtype=torch.long)
    scored = torch.zeros(len(windows), longest - 1, dtype=torch.bool)
    for row, window in enumerate(windows):
        # Padding comes last, where no scored position sees it.
        tokens[row, : len(window.ids)] = torch.tensor(window.ids)
        scored[row, len(window.ids) - 1 - window.scored : len(window.ids) - 1] = True
    tokens, scored = tokens.to(scorer.device), scored.to(scorer.device)
    inputs, targets = tokens[:, :-1], tokens[:, 1:][scored]
    with scorer.autocast():
        hidden = scorer.model.tail(inputs, inputs.shape[1])[scored]  # [S in all, D]
        logits = scorer.model.logits(hidden[None]) / scorer.temperature
    nats = token_nll(logits, targets[None])[0].double()
    likeliest = logits[0].argmax(-1) == targets
    sizes = [window.scored for window in windows]
    for lost, right in zip(_split(nats, sizes), _split(likeliest, sizes), strict=True):
        yield float(lost.sum()), bool(right.all())


def _split(values: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    return values.cpu().split(sizes)
