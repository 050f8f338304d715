"""Sample text from a model, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from jepa_lm.data.tokenizers import Tokenizer
from jepa_lm.model import LanguageModel
from jepa_lm.model.streaming import read_on, why_not_stream


def continued(
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    prompt: str | None,
    tokens: int,
    temperature: float,
    seed: int,
    context: int,
    until: Sequence[str] = (),
) -> tuple[str, str]:
    """Return `prompt`, or the start of a document, as the tokenizer spells it, and its continuation.

    The continuation stops at the end of a document, or before the first of the texts `until`.

    Args:
        tokens: most tokens to draw. temperature: 0 takes the most likely token each time.
        context: number of tokens that a model without state sees, its training length.
    """
    ids = start_of_text(tokenizer, prompt)
    start, text = tokenizer.decode(ids), ""
    was_training = model.training
    model.eval()
    first = torch.tensor([ids])
    drawn = draws(model, first, temperature=temperature, seed=seed, context=context)
    for following in islice(drawn, tokens):
        if int(following) == tokenizer.bos_id or any(word in text for word in until):
            break
        ids.append(int(following))
        if until:
            text = _decoded(tokenizer, ids, start)
    model.train(was_training)
    text = _decoded(tokenizer, ids, start)
    ends = [text.index(word) for word in until if word in text]
    return start.decode(errors="replace"), text[: min(ends, default=len(text))]


def _decoded(tokenizer: Tokenizer, ids: list[int], start: bytes) -> str:
    """Return the text of the ids after the bytes `start`."""
    return tokenizer.decode(ids)[len(start) :].decode(errors="replace")


def start_of_text(tokenizer: Tokenizer, prompt: str | None = None) -> list[int]:
    """Return the ids that start a text: BOS and the prompt; without a BOS, the prompt or else a line break.

    There is at least one id: if the tokenizer drops white space, it is the first token that has text.
    """
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids += [int(token) for token in tokenizer.encode(prompt or ("" if ids else "\n"))]
    return ids or [int((tokenizer.token_bytes().base > 0).argmax())]


def draws(
    model: LanguageModel, ids: Tensor, *, temperature: float, seed: int, context: int
) -> Iterator[Tensor]:
    """Yield the ids [B] that the model draws after `ids` [B, t], position after position, without end.

    The model should be in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    following = _streamed(model) if why_not_stream(model) is None else _windowed(model, context)
    while True:
        logits = following(ids).float().cpu()
        if temperature == 0:
            drawn = logits.argmax(1)
        else:
            weights = torch.softmax(logits / temperature, dim=-1)
            drawn = torch.multinomial(weights, 1, generator=generator)[:, 0]
        yield drawn
        ids = torch.cat((ids, drawn[:, None]), dim=1)


def _windowed(model: LanguageModel, context: int) -> Callable[[Tensor], Tensor]:
    """Return a function from ids [B, t] to the next logits [B, V], by a pass over the last `context` ids."""
    device = model.embedding.table.weight.device

    @torch.inference_mode()
    def following(ids: Tensor) -> Tensor:
        return model.logits(model.tail(ids[:, -context:].to(device), 1))[:, -1]

    return following


def _streamed(model: LanguageModel) -> Callable[[Tensor], Tensor]:
    """Return the same function, but with a state kept between calls: one token per step, any context."""
    device = model.embedding.table.weight.device
    state, read = None, 0

    @torch.inference_mode()
    def following(ids: Tensor) -> Tensor:
        nonlocal state, read
        hidden, state = read_on(model, ids[:, read:].to(device), state)
        read = ids.shape[1]
        return model.logits(hidden[:, -1:])[:, -1]

    return following
