"""Score a model over a whole split, outside of training: in windows, or as one stream with carried state.

Legend: N tokens, T positions of a window, L positions of a piece, B rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.stream import Batch, TokenStream
from jepa_lm.evaluation.bpb import BPBMeter, target_bytes, window_scores
from jepa_lm.model import LanguageModel, token_nll
from jepa_lm.model.streaming import TextState, read_on
from jepa_lm.utils.console import shown
from jepa_lm.utils.output import tell
from jepa_lm.utils.precision import AUTOCAST, resolve_precision

Scores = Callable[..., tuple[Tensor, Tensor | None]]
"""`window_scores`, compiled or not."""


class TargetScores(NamedTuple):
    """Scores of the targets of a batch, [B, S] each."""

    nats: Tensor
    bytes: Tensor
    answers: Tensor | None
    """Whether each target counts; None for all."""
    hits: Tensor | None
    """Whether each is the likeliest token, where only answers count."""


class Scorer(NamedTuple):
    """How text is scored: by which model, on which device, in which precision, by which of the processes."""

    model: LanguageModel
    byte_counter: ByteCounter
    device: torch.device
    precision: str
    """Lightning's name for the precision, as in training."""
    temperature: float = 1.0
    rank: int = 0
    world_size: int = 1
    compile: bool = False
    """Compile the model for windows of the usual shape; the first and the last ones are run as they are."""

    @classmethod
    def of(
        cls, model: LanguageModel, byte_counter: ByteCounter, device: torch.device, precision: str
    ) -> Scorer:
        """Return the scorer of a single process; `precision` may be `auto`."""
        return cls(model, byte_counter, device, resolve_precision(precision, device.type))

    def prepare(self) -> BPBMeter:
        """Move the model and the byte counter to the device, and return an empty meter there."""
        self.model.to(self.device).eval()
        self.byte_counter.to(self.device)
        return BPBMeter().to(self.device)

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the precision."""
        dtype = AUTOCAST[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def compiled_scores(self, seq_len: int) -> Scores:
        """Return `window_scores`, compiled by its first call for windows of `seq_len` inputs."""
        self.model.backbone.keep_tables(seq_len, self.device)
        compiled, called = torch.compile(window_scores, dynamic=False), False

        def scores(*args: Any) -> tuple[Tensor, Tensor | None]:
            nonlocal called
            if called or self.rank:
                return compiled(*args)
            called, began = True, time.perf_counter()
            tell(f"compiling the model for windows of {seq_len} tokens ...")
            result = compiled(*args)
            tell(f"compiled in {time.perf_counter() - began:.0f} s")
            return result

        return scores

    def shown(self, numbers: range) -> Iterable[int]:
        """Return the same numbers; the first process shows a progress bar."""
        return shown(numbers, "evaluating", len(numbers)) if self.rank == 0 else numbers


@torch.inference_mode()
def score_windows(scorer: Scorer, windows: torch.utils.data.Dataset[Batch]) -> Tensor:
    """Return the nats, targets and bytes, float64, of this process's share of the windows.

    Where only answers count, their hits are a fourth number. Process r takes every W-th batch, so that no
    target is scored twice.
    """
    meter = BPBMeter(hits="answers" in windows[0]).to(scorer.device)
    for found in scores_of_targets(scorer, windows):
        meter.update(*found)
    return meter.sums


@torch.inference_mode()
def scores_of_targets(
    scorer: Scorer, windows: torch.utils.data.Dataset[Batch]
) -> Iterator[TargetScores]:
    """Yield the scores of this process's batches."""
    scorer.prepare()
    count = len(windows)  # type: ignore[arg-type]
    usual = _shapes(windows[count // 2]) if scorer.compile else None
    compiled: Scores = window_scores
    if usual is not None:
        compiled = scorer.compiled_scores(seq_len=usual["inputs"][1])
    for i in scorer.shown(range(scorer.rank, count, scorer.world_size)):
        batch = {name: t.to(scorer.device) for name, t in windows[i].items()}
        scores, answers = (
            compiled if _shapes(batch) == usual else window_scores,
            batch.get("answers"),
        )
        asked = batch["inputs"], batch["targets"], scorer.temperature, answers is not None
        with scorer.autocast():
            nats, hits = scores(scorer.model, *asked)
        yield TargetScores(nats, target_bytes(batch, scorer.byte_counter), answers, hits)


def _shapes(batch: Batch) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in batch.items()}


@torch.inference_mode()
def score_stream(scorer: Scorer, stream: TokenStream, *, piece: int) -> Tensor:
    """Return the nats, targets and bytes [3] of one pass over the text, with state carried between pieces.

    Memory does not grow with the text.

    Args:
        piece: L, tokens read at a time; affects speed and memory, not the score.
    """
    meter, state = scorer.prepare(), None
    targets = stream.total - 1
    for i in scorer.shown(range(-(-targets // piece))):
        ids = np.empty(min(piece, targets - i * piece) + 1, dtype=np.int64)
        stream.read(i * piece, ids)
        tokens = torch.from_numpy(ids)[None].to(scorer.device)
        state = _score_piece(scorer, meter, tokens, state, None)
    return meter.sums


@torch.inference_mode()
def score_documents(
    scorer: Scorer, stream: TokenStream, *, bos_id: int, piece: int, rows: int
) -> Tensor:
    """Return the nats, targets and bytes [3], with an empty state at the start of each document.

    A document runs from its BOS to the next BOS, which is its last target. Documents of similar length are
    scored together, to reduce padding; the score does not depend on it.

    Args:
        piece: L, tokens of a document read at a time. rows: B, documents scored together.
    """
    meter = scorer.prepare()
    starts, lengths = documents(stream, bos_id)
    waves = range(scorer.rank * rows, len(starts), scorer.world_size * rows)
    for first in scorer.shown(waves):
        wave = slice(first, first + rows)
        state: TextState | None = None
        for tokens, length in _pieces(stream, starts[wave], lengths[wave], piece):
            if state is not None:
                state = state.first(len(tokens))
            state = _score_piece(
                scorer, meter, tokens.to(scorer.device), state, length.to(scorer.device)
            )
    return meter.sums


def documents(stream: TokenStream, bos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first token and the number of targets of each document of a split, longest first."""
    block, found = 1 << 22, [np.zeros(1, dtype=np.int64)]
    for start in range(0, stream.total - 1, block):
        ids = np.empty(min(block, stream.total - 1 - start), dtype=np.int64)
        stream.read(start, ids)
        found.append(start + np.flatnonzero(ids == bos_id))
    starts = np.unique(np.concatenate(found))
    lengths = np.diff(starts, append=stream.total - 1)
    order = np.argsort(-lengths, kind="stable")
    return starts[order], lengths[order]


def _pieces(
    stream: TokenStream, starts: np.ndarray, lengths: np.ndarray, piece: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens [B', L + 1] and target counts [B'] of the unfinished documents, longest first."""
    for at in range(0, int(lengths[0]), piece):
        left = np.minimum(lengths - at, piece)
        alive = int((left > 0).sum())
        ids = np.zeros((alive, int(left[0]) + 1), dtype=np.int64)
        for row in range(alive):
            stream.read(int(starts[row]) + at, ids[row, : left[row] + 1])
        yield torch.from_numpy(ids), torch.from_numpy(left[:alive])


def _score_piece(
    scorer: Scorer,
    meter: BPBMeter,
    tokens: Tensor,
    state: TextState | None,
    lengths: Tensor | None,
) -> TextState:
    """Score tokens [B, L + 1], only the first `lengths` targets of each row; return the next state."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with scorer.autocast():
        hidden, state = read_on(scorer.model, inputs, state)
        nll = token_nll(scorer.model.logits(hidden) / scorer.temperature, targets)
    n_bytes = scorer.byte_counter(inputs, targets)
    if lengths is not None:
        real = torch.arange(targets.shape[1], device=lengths.device) < lengths[:, None]
        nll, n_bytes = nll[real], n_bytes[real]
    meter.update(nll, n_bytes)
    return state
