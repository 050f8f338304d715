"""Text from a model, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

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
        context: tokens the model looks back at, its training length.
    """
    device = model.embedding.table.weight.device
    generator = torch.Generator().manual_seed(seed)
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids += tokenizer.encode(prompt or ("" if ids else "\n")).tolist()
    was_training = model.training
    model.eval()
    for _ in range(tokens):
        window = torch.tensor([ids[-context:]], device=device)
        encoded = model.encode(model.embed(window))
        logits = model.logits(encoded.final[:, -1:])[0, -1].float().cpu()
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
