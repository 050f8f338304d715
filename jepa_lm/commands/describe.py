"""Describes a run as plain values (sizes, FLOPs, groups, phases) without training it."""

from __future__ import annotations

from typing import Any

from jepa_lm.artifact.codecs import COMPRESSORS
from jepa_lm.artifact.prediction import predict
from jepa_lm.artifact.size import CAP_BYTES, code_bytes
from jepa_lm.artifact.tokenizer import BESIDE, INSIDE, serialized
from jepa_lm.artifact.writing import tokenizer_sizes
from jepa_lm.data.corpora import ShardCorpus
from jepa_lm.data.prepare import prepare
from jepa_lm.data.token_data import TokenData
from jepa_lm.data.tokenizers import SentencePieceBPE
from jepa_lm.objective.reach import reach_table
from jepa_lm.training.estimate import estimate
from jepa_lm.training.flops import flops_per_token, sizes
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import build
from jepa_lm.utils.errors import UserError


def artifact(task: LanguageModelTask) -> dict[str, Any]:
    """Return the predicted size of the exported file for each codec, and the headroom under the cap.

    `tokenizer` says where an export puts the tokenizer by default, and `tokenizer_bytes` what it takes in the
    file; None, and not counted, where it is not at hand.
    """
    codecs = list(COMPRESSORS)
    predicted = predict(task.model, task.formats, codecs)
    place, stored = _tokenizer(task.config["data"])
    inside = tokenizer_sizes(stored, codecs)
    if stored is None:
        place = f"{place}, not counted: it is not at hand before the data is prepared"
    size, code = predicted["bytes"] + min(inside.values()), code_bytes()
    return {
        **predicted,
        "bytes": size,
        "compressors": {c: n + inside[c] for c, n in predicted["compressors"].items()},
        "tokenizer": place,
        "tokenizer_bytes": None if stored is None else min(inside.values()),
        "code_bytes": code,
        "total": size + code,
        "cap": CAP_BYTES,
        "headroom": CAP_BYTES - size - code,
    }


def _tokenizer(settings: dict[str, Any]) -> tuple[str, bytes | None]:
    """Return where an export puts the tokenizer, and what the file stores of it; None if it is not at hand.

    Nothing is prepared or downloaded.
    """
    try:
        data = build("data", settings)
        if not isinstance(data, TokenData):
            return INSIDE, None
        source = data.tokenizer_source
        if isinstance(data.corpus, ShardCorpus):
            return BESIDE, b""
        if not isinstance(source, SentencePieceBPE) or source.model is not None:
            return INSIDE, serialized(source.build((), None)) or b""
        if data.is_prepared():
            prepared = prepare(data.corpus, source, data.cache_dir)  # opens what is there
            return INSIDE, serialized(prepared.tokenizer) or b""
    except UserError:  # no such text or tokenizer on this machine
        pass
    return INSIDE, None


def describe(task: LanguageModelTask) -> dict[str, Any]:
    """Return sizes, FLOPs, artifact size, optimizer groups, frozen parameters, schedules, gradient reach.

    With `describe_for`, also what a step would take on that GPU.
    """
    card = task.config["describe_for"]
    seq_len = task.config["data"]["seq_len"]
    names = {id(p): n for n, p in task.named_parameters()}
    optimizer, _ = task.recipe.configure(task, task.clock)
    groups = {
        group["name"]: {
            "algorithm": group["algorithm"],
            "lr": group["initial_lr"],
            "tensors": len(group["params"]),
            "values": sum(p.numel() for p in group["params"]),
            "parameters": [names[id(p)] for p in group["params"]],
        }
        for group in optimizer.param_groups
    }
    frozen = task.frozen
    return {
        **sizes(task),
        "flops_per_token": flops_per_token(task),
        **({} if card is None else {"estimate": estimate(task, card)}),
        "artifact": artifact(task),
        "optimizer": {"groups": groups, "frozen": frozen},
        "schedules": task.phases(),
        "gradient_reach": reach_table(task.model, task.objective, seq_len, frozen, task.tokens),
    }
