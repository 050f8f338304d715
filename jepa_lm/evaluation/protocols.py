"""Protocols for scoring a split. Reports name the protocol, because scores of different ones do not compare.

- `standard`: windows side by side, as in validation.
- `sliding`: overlapping windows, so that every target has context (the challenge's score).
- `stream`: one pass with carried state, over the whole text or each document; only recurrent models.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jepa_lm.data.split import Split
from jepa_lm.data.windows import SlidingWindows
from jepa_lm.evaluation.scoring import Scorer, score_documents, score_stream, score_windows
from jepa_lm.model.streaming import why_not_stream
from jepa_lm.utils.errors import UserError

OWN_SETTINGS = {"standard": (), "sliding": ("stride",), "stream": ("reset",)}
"""Settings that apply to only one protocol."""


def check_protocol(settings: dict[str, Any], devices: int) -> None:
    """Check the protocol's settings, and refuse those that it would not read.

    Raises:
        UserError: the message names the setting.
    """
    protocol = settings["protocol"]
    for owner, keys in OWN_SETTINGS.items():
        for key in keys:
            if owner != protocol and settings[key] is not None:
                raise UserError(
                    f"eval.{key}={settings[key]}: applies only to eval={owner}, not to "
                    f"eval={protocol}"
                )
    if protocol == "stream" and settings["compile"]:
        raise UserError("eval.compile=true: only windows are compiled, not eval=stream")
    if protocol == "stream" and settings["reset"] is None:
        raise UserError("eval.reset=null: eval=stream needs none or document")
    if protocol == "stream" and devices > 1 and settings["reset"] == "none":
        raise UserError(
            f"devices={devices}: one stream is read by one process; use devices=1, or "
            "eval.reset=document"
        )


def details(settings: dict[str, Any], stride: int) -> dict[str, Any]:
    """Return the protocol's settings for a report.

    Args:
        stride: the run's own stride, used if the settings give none.
    """
    if settings["protocol"] == "sliding":
        return {"stride": _stride(settings, stride)}
    return {key: settings[key] for key in OWN_SETTINGS[settings["protocol"]]}


def _stride(settings: dict[str, Any], stride: int) -> int:
    given = settings["stride"]
    return stride if given is None else int(given)


def tokens_read(split: Split, settings: dict[str, Any], stride: int) -> int:
    """Return how many tokens a model reads: overlapping windows give it most of them many times."""
    T, targets = split.seq_len, split.stream.total - 1
    if settings["protocol"] != "sliding" or targets <= T:
        return targets
    return T * (1 + -(-(targets - T) // _stride(settings, stride)))


def score_split(scorer: Scorer, split: Split, settings: dict[str, Any], stride: int) -> Tensor:
    """Return the nats, targets and bytes of this process's share of the split; see `score_windows`.

    Args:
        stride: the run's own stride, used if the settings give none.

    Raises:
        UserError: this model or this tokenizer does not support the protocol.
    """
    if split.examples is not None and settings["protocol"] != "standard":
        raise UserError(
            f"eval={settings['protocol']}: these data are rows that are examples, and no window may cross "
            "them; use eval=standard"
        )
    if settings["protocol"] == "standard":
        return score_windows(scorer, split.windows())
    if settings["protocol"] == "sliding":
        windows = SlidingWindows(
            split.stream,
            seq_len=split.seq_len,
            stride=_stride(settings, stride),
            rows=split.rows,
            device=scorer.device,
        )
        return score_windows(scorer, windows)
    if (reason := why_not_stream(scorer.model)) is not None:
        raise UserError(f"eval=stream: this model does not support it: {reason}; use eval=sliding")
    if settings["reset"] == "none":
        return score_stream(scorer, split.stream, piece=split.batch_tokens)
    bos_id = split.tokenizer.bos_id
    if bos_id is None:
        raise UserError(
            "eval.reset=document: this tokenizer marks no documents (it has no BOS); use eval.reset=none"
        )
    return score_documents(
        scorer, split.stream, bos_id=bos_id, piece=split.seq_len, rows=split.rows
    )
