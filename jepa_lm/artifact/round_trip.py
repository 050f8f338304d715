"""Check in a fresh process that the artifact scores like the checkpoint it was exported from.

`python -m jepa_lm.artifact.round_trip JSON` loads both, scores both on the same text and prints the scores.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jepa_lm.artifact.loaded_model import (
    HeldFile,
    LoadedModel,
    load_data,
    load_model,
    pick_device,
    read_model,
    weights_of,
)
from jepa_lm.artifact.loading import load_artifact
from jepa_lm.data.token_data import TokenData
from jepa_lm.evaluation.bpb import Score, score_from_sums
from jepa_lm.evaluation.protocols import score_split
from jepa_lm.evaluation.scoring import Scorer
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.process import fresh_python, tune
from jepa_lm.utils.quoting import one_line
from jepa_lm.utils.trusted import Trust

RESULT = "round trip: "


def check_protocols(names: list[str]) -> None:
    """Check that export supports these evaluation protocols."""
    for name in names:
        if name not in ("standard", "sliding"):
            raise UserError(f"export.protocols={name}: standard, sliding, or both")


def check_stride(names: list[str], stride: int, seq_len: int) -> None:
    """Check, before anything is compressed, that the stride fits the run's window length."""
    if "sliding" in names and not 1 <= stride <= seq_len:
        raise UserError(f"export.stride={stride}: 1 to the window length {seq_len}")


def round_trip(
    artifact: Path,
    checkpoint: HeldFile,
    weights: str,
    *,
    protocols: list[str],
    stride: int,
    max_tokens: int | None,
    device: str,
    cache: str,
    trust: Trust,
) -> dict[str, Any]:
    """Load the artifact strictly in a fresh process and score it next to its checkpoint.

    Args:
        weights: hash of the weights that were exported; the checkpoint must still match it.
        stride: stride of the sliding windows. max_tokens: validation tokens to read, None for all.

    Returns:
        `round_trip`: by protocol, the scores of `checkpoint` and `artifact`, their difference `bpb_loss`, and
        the `floor` in nats per token, None where no law is known;
        `scored_all`: True if the whole validation split was scored.

    Raises:
        UserError: the process cannot load or score the artifact.
    """
    settings = {
        "artifact": str(artifact),
        "checkpoint": [checkpoint.key, str(checkpoint.path), str(checkpoint.file)],
        "weights": weights,
        "protocols": protocols,
        "stride": stride,
        "max_tokens": max_tokens,
        "device": device,
        "cache": cache,
        "trust": list(trust.modules),
        "limits": asdict(trust.limits),
    }
    answer = _asked(settings)
    if "error" in answer:
        raise UserError(
            f"export: a fresh process cannot load and score {artifact}: {answer['error']}"
        )
    return answer


def _asked(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of the fresh process, or `error` if it gave none."""
    with fresh_python(
        *("-m", "jepa_lm.artifact.round_trip", json.dumps(settings)),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    found = [line for line in printed.splitlines() if line.startswith(RESULT)]
    if not found or process.returncode:
        return {"error": f"the process ended with exit code {process.returncode}"}
    answer: dict[str, Any] = json.loads(found[-1].removeprefix(RESULT))
    return answer


def _scores(settings: dict[str, Any]) -> dict[str, Any]:
    """Load and score both models; runs in the fresh process."""
    artifact, trust = settings["artifact"], Trust.of(settings)
    if not settings["protocols"]:
        load_artifact(Path(artifact), trust)
        return {"round_trip": {}, "scored_all": False}
    key, path, file = settings["checkpoint"]
    loaded_models = {
        "checkpoint": read_model(HeldFile(key, Path(path), Path(file)), trust),
        "artifact": load_model(None, artifact, trust),
    }
    if weights_of(loaded_models["checkpoint"]) != settings["weights"]:
        raise UserError(f"{key}={path}: changed while it was being exported; export it again")
    data = load_data(loaded_models["artifact"], {"cache_dir": settings["cache"]})
    whole = data.streams["val"].total
    data.limit_validation(settings["max_tokens"])
    found = {}
    for protocol in settings["protocols"]:
        scores = {
            name: _score(loaded, data, protocol, settings) for name, loaded in loaded_models.items()
        }
        found[protocol] = {
            **{name: score.as_dict() for name, score in scores.items()},
            "bpb_loss": scores["artifact"].value - scores["checkpoint"].value,
            "floor": data.split("val").floor,
        }
    return {"round_trip": found, "scored_all": data.streams["val"].total == whole}


def _score(loaded: LoadedModel, data: TokenData, protocol: str, asked: dict[str, Any]) -> Score:
    device = pick_device(asked["device"])
    split = data.split("val")
    scorer = Scorer.of(loaded.model, split.byte_counter(), device, loaded.precision)._replace(
        temperature=loaded.temperature
    )
    settings = {"protocol": protocol, "stride": asked["stride"]}
    return score_from_sums(*score_split(scorer, split, settings, loaded.stride).tolist())


def answer_to(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the scores, or `error` with the reason."""
    try:
        return _scores(settings)
    except (UserError, OSError, MemoryError) as error:
        return {"error": one_line(error)}


def main(argument: str) -> int:
    """Print the answer as one line of JSON."""
    tune()
    print(RESULT + json.dumps(answer_to(json.loads(argument))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
