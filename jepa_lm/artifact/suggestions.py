"""Measure ways to fit an artifact under its cap: the bytes and the BPB loss of each.

A way is an override for the command whose artifact was too large. Losses are measured on training tokens with
plain rounding, relative to the trained weights; bytes with the codec that was best for that artifact.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from jepa_lm.artifact.codecs import compress
from jepa_lm.artifact.prediction import predict
from jepa_lm.artifact.size import FULL, MINIFIED
from jepa_lm.artifact.writing import pack_model, to_streams
from jepa_lm.data.stream import Batch
from jepa_lm.evaluation.bpb import score_from_sums
from jepa_lm.evaluation.scoring import Scorer, score_windows
from jepa_lm.quantization.qat import stored_copy
from jepa_lm.utils.config import build
from jepa_lm.utils.errors import UserError

READY = ("int8", "int6", "int5", "int4")
WANTED = 3
MARGIN = 1.05
"""Skip an option whose predicted size is more than this factor times the cap."""


@dataclass(frozen=True)
class Attempt:
    """An export that was too large."""

    quantization: Mapping[str, Any]
    cap: int
    bytes: int
    tokenizer_bytes: int
    """Part of `bytes` that no policy changes."""
    codec: str
    streams: str
    meta: Mapping[str, Any]
    code: Mapping[str, int]
    """Bytes of the code: full, minified, and as counted."""
    counted: str
    """Key of `code` that was counted."""


def ways_under(
    attempt: Attempt, scorer: Scorer, windows: torch.utils.data.Dataset[Batch], policies: Path
) -> list[dict[str, Any]]:
    """Return up to three ways to fit, smallest loss first: `overrides`, `bytes`, `total`, `bpb_loss`.

    Args:
        scorer: holds the trained model. windows: windows of training tokens.
        policies: folder of the predefined policies.
    """
    found = []
    if attempt.counted == FULL and attempt.bytes + attempt.code[MINIFIED] <= attempt.cap:
        found.append(_way(attempt, ["export.code=minified"], attempt.bytes, 0.0))
    before = _bpb(scorer, windows)
    options = []
    for override, node in _options(attempt.quantization, policies):
        try:
            formats = build("quantization", node).assign(scorer.model)
        except UserError:  # a predefined policy need not fit every model
            continue
        weights = predict(scorer.model, formats, [attempt.codec], trained=True)["bytes"]
        if weights + attempt.tokenizer_bytes + min(attempt.code.values()) <= MARGIN * attempt.cap:
            stored = stored_copy(scorer.model, formats)
            loss = _bpb(scorer._replace(model=stored), windows) - before
            if math.isfinite(loss):
                options.append((loss, override, formats))
    tried = set()
    for loss, override, formats in sorted(options, key=lambda option: option[0]):
        if len(found) == WANTED:
            break
        if (stored_as := tuple(kind.name for kind in formats.values())) in tried:
            continue  # identical to a way that was tried
        tried.add(stored_as)
        size = _compressed(attempt, scorer.model, formats)
        if size + attempt.code[attempt.counted] <= attempt.cap:
            found.append(_way(attempt, [override], size, loss))
        elif size + attempt.code[MINIFIED] <= attempt.cap:
            found.append(_way(attempt, [override, "export.code=minified"], size, loss))
    return found


def _way(attempt: Attempt, overrides: list[str], size: int, loss: float) -> dict[str, Any]:
    code = MINIFIED if "export.code=minified" in overrides else attempt.counted
    total = size + attempt.code[code]
    return {"overrides": overrides, "bytes": size, "total": total, "bpb_loss": loss}


def _options(
    quantization: Mapping[str, Any], policies: Path
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield overrides and their policies: fewer bits for a rule, more tensors for it, a predefined policy."""
    for name, rule in quantization["rules"].items():
        path = f"++quantization.rules.{name}"  # ++ works for the run's own policy too
        for bits in range(int(rule["format"].get("bits", 0)) - 1, 2, -1):
            changed = copy.deepcopy(dict(quantization))
            changed["rules"][name]["format"]["bits"] = bits
            yield f"{path}.format.bits={bits}", changed
        if rule["format"].get("bits") and rule["min_values"] > 1024:
            changed = copy.deepcopy(dict(quantization))
            changed["rules"][name]["min_values"] = 1024
            yield f"{path}.min_values=1024", changed
    for name in READY:
        node: Any = OmegaConf.to_container(_policy(policies, name))
        if node["rules"] != quantization["rules"]:
            yield f"quantization={name}", node


def _policy(policies: Path, name: str) -> DictConfig:
    """Return a predefined policy with what it inherits; Hydra would take half a second for each."""
    own = OmegaConf.load(policies / f"{name}.yaml")
    assert isinstance(own, DictConfig)
    inherited = [base for base in own.pop("defaults", ()) if base != "_self_"]
    merged = OmegaConf.merge(*(_policy(policies, base) for base in inherited), own)
    assert isinstance(merged, DictConfig)
    return merged


def _bpb(scorer: Scorer, windows: torch.utils.data.Dataset[Batch]) -> float:
    return score_from_sums(*score_windows(scorer, windows).tolist()).value


def _compressed(attempt: Attempt, model: nn.Module, formats: Mapping[str, Any]) -> int:
    """Return the bytes of the file, without its short header."""
    raw = to_streams(pack_model(model, formats), attempt.meta, attempt.streams)
    return attempt.tokenizer_bytes + sum(len(compress(attempt.codec, stream)) for stream in raw)
