"""GPTQ for a whole model: record the inputs of each matrix on calibration text and fit its integers to them.

The text is the run's training text or text that the model generates (the challenge does not allow an export
to read training text after training). Validation text is never read.
Legend: B rows, T positions, C inputs of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa_lm.data.stream import TokenStream
from jepa_lm.data.windows import StandardWindows
from jepa_lm.evaluation.sampling import draws
from jepa_lm.model import LanguageModel
from jepa_lm.quantization.formats import Format, Integer, Parts
from jepa_lm.quantization.gptq import NotPositiveDefiniteError, gptq, output_error
from jepa_lm.utils.console import shown
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.kinds import Count, Positive, Seed, checked

OWN = "own"
BATCH_TOKENS = 4096


class GPTQSettings:
    """Settings of GPTQ calibration.

    Args:
        text: `training`, the first tokens of the training split, or `own`, text that the model generates.
        tokens: number of tokens. damping, act_order: see `gptq`; without damping, inputs that always occur
            together would make the matrix singular.
        seed: seed of the generated text.
    """

    @checked
    def __init__(
        self,
        *,
        text: Literal["training", "own"],
        tokens: Count,
        damping: Positive,
        act_order: bool,
        seed: Seed,
    ) -> None:
        self.text, self.tokens, self.seed = text, tokens, seed
        self.damping, self.act_order = damping, act_order


def calibrate(
    model: LanguageModel,
    formats: Mapping[str, Format],
    batches: Iterable[Tensor],
    settings: GPTQSettings,
) -> tuple[dict[str, Parts], dict[str, Any]]:
    """Quantize every matrix whose format is integers.

    Each matrix keeps the result, GPTQ or plain rounding, that changes its outputs less on this text. If GPTQ
    has no solution, the matrix is rounded, with a warning.

    Args:
        batches: token ids [B, T].

    Returns:
        The stored parts by parameter name, and a report: tokens read, and the errors and choice per matrix.

    Raises:
        UserError: no matrix is stored as integers.
    """
    names = _integer_matrices(model, formats)
    if not names:
        raise UserError("quantization.gptq: no matrix of this policy is stored as integers")
    hessians, tokens = input_hessians(model, batches, names)
    parameters, found, rows = dict(model.named_parameters()), {}, []
    for name in shown(names, "GPTQ", len(names)):
        kind = formats[name]
        assert isinstance(kind, Integer)
        weight = parameters[name].detach().float().cpu()
        found[name], row = _fitted(weight, hessians.pop(name), kind, settings)
        rows.append({"name": name, **row})
    failed = [row["name"] for row in rows if "gptq" not in row["squared_error"]]
    if failed:
        warn(
            f"GPTQ: {len(failed)} of {len(rows)} matrices are rounded ({', '.join(failed)}): their "
            "inputs give no positive definite matrix; more quantization.gptq.tokens or a larger "
            "quantization.gptq.damping can help"
        )
    share = sum(row["kept"] == "gptq" for row in rows) / len(rows)
    report = {
        "text": settings.text,
        "tokens": tokens,
        "kept_gptq": share,
        "not_factored": failed,
        "matrices": rows,
    }
    return found, report


def _fitted(
    weight: Tensor, H: Tensor, kind: Integer, settings: GPTQSettings
) -> tuple[Parts, dict[str, Any]]:
    """Return the stored parts of one matrix, and a report of the method kept and the errors of both."""
    options: dict[str, Parts] = {"rounding": kind.pack(weight)}
    with suppress(NotPositiveDefiniteError):
        options["gptq"] = kind.store(
            *gptq(weight, H, kind, damping=settings.damping, act_order=settings.act_order)
        )
    errors = {
        way: output_error(weight, kind.unpack(kind.spec(), parts, tuple(weight.shape)), H)
        for way, parts in options.items()
    }
    kept = "gptq" if errors.get("gptq", math.inf) < errors["rounding"] else "rounding"
    return options[kept], {"kept": kept, "squared_error": errors}


@torch.inference_mode()
def input_hessians(
    model: nn.Module, batches: Iterable[Tensor], names: Iterable[str]
) -> tuple[dict[str, Tensor], int]:
    """Return H = sum x x^T [C, C] over the inputs x of each linear layer, on the CPU, and the tokens read.

    Args:
        names: names of the layers' weights.
    """
    sums: dict[str, Tensor] = {}

    def listen(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2).float()
            product = x.T @ x
            sums[name] = product if name not in sums else sums[name].add_(product)

        return hook

    hooks = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(listen(name))
        for name in names
    ]
    tokens = 0
    try:
        for ids in batches:
            model(ids)
            tokens += ids.numel()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: H.cpu() for name, H in sums.items()}, tokens


def _integer_matrices(model: nn.Module, formats: Mapping[str, Format]) -> list[str]:
    """Return the names of the weights of linear layers that are stored as integers."""
    return [
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and isinstance(formats.get(f"{path}.weight"), Integer)
    ]


def training_text(
    train: TokenStream, *, tokens: int, seq_len: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield the first tokens of the training split in batches [B, T]."""
    rows = max(1, BATCH_TOKENS // seq_len)
    windows = StandardWindows(train, seq_len=seq_len, rows=rows, limit=tokens + 1)
    for i in range(len(windows)):
        yield windows[i]["inputs"].to(device)


def own_text(
    model: LanguageModel, start: list[int], *, tokens: int, seq_len: int, seed: int
) -> Iterator[Tensor]:
    """Yield text that the model generates after `start`, at temperature 1, in batches [B, T]."""
    device = model.embedding.table.weight.device
    written, length = 0, min(seq_len, tokens)
    while written < tokens:
        rows = min(max(1, BATCH_TOKENS // length), -(-(tokens - written) // length))
        ids = torch.tensor([start] * rows)
        drawn = draws(model, ids, temperature=1.0, seed=seed + written, context=seq_len)
        text = torch.stack(list(shown(islice(drawn, length), "generated text", length)), dim=1)
        written += text.numel()
        yield text.to(device)
