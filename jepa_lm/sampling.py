"""Text from a model, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from jepa_lm.data.tokenizers import Tokenizer
from jepa_lm.errors import UserError
from jepa_lm.model import LanguageModel


def check_sampling(settings: Mapping[str, Any]) -> None:
    """Refuse settings that could only fail after the training.

    Raises:
        UserError: a negative temperature or length.
    """
    for key in ("temperature", "tokens"):
        if settings[key] < 0:
            raise UserError(f"sampling.{key}={settings[key]}: must be 0 or more")


@torch.inference_mode()
def sample_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    prompt: str | None,
    tokens: int,
    temperature: float,
    seed: int,
    context: int,
) -> str:
    """A continuation of `prompt`, or of the start of a document.

    Args:
        tokens: how many to draw. temperature: 0 takes the likeliest token each time.
        context: tokens a model without state looks back at, its training length.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids += tokenizer.encode(prompt or ("" if ids else "\n")).tolist()
    was_training = model.training
    model.eval()
    following = _streamed(model) if model.why_not_stream() is None else _windowed(model, context)
    for _ in range(tokens):
        logits = following(ids).float().cpu()
        if temperature == 0:
            drawn = int(logits.argmax())
        else:
            weights = torch.softmax(logits / temperature, dim=-1)
            drawn = int(torch.multinomial(weights, 1, generator=generator))
        if drawn == tokenizer.bos_id:
            break
        ids.append(drawn)
    model.train(was_training)
    return tokenizer.decode(ids).decode(errors="replace")


def _windowed(model: LanguageModel, context: int) -> Callable[[list[int]], Tensor]:
    """Logits [V] of what follows some ids, from a pass over the last `context` of them."""
    device = model.embedding.table.weight.device

    def following(ids: list[int]) -> Tensor:
        hidden = model.tail(torch.tensor([ids[-context:]], device=device), 1)
        return model.logits(hidden)[0, -1]

    return following


def _streamed(model: LanguageModel) -> Callable[[list[int]], Tensor]:
    """The same from the state after the ids of the call before: one token a step, any context."""
    device = model.embedding.table.weight.device
    state, read = None, 0

    def following(ids: list[int]) -> Tensor:
        nonlocal state, read
        hidden, state = model.stream(torch.tensor([ids[read:]], device=device), state)
        read = len(ids)
        return model.logits(hidden[:, -1:])[0, -1]

    return following
