"""What is scored: a checkpoint's or an artifact's model, with the data it was trained beside."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from jepa_lm.artifact.loading import load_artifact, weights_hash
from jepa_lm.artifact.publishing import find_artifact
from jepa_lm.data.corpora import FineWeb
from jepa_lm.data.token_data import TokenData
from jepa_lm.model import LanguageModel
from jepa_lm.model.checkpoint import TRIES, find_checkpoint, inference_model, read_checkpoint
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import held, sweep_up
from jepa_lm.utils.trusted import Trust, build_part, check_part


class LoadedModel(NamedTuple):
    """A model with the settings it was trained under."""

    source: Path
    model: LanguageModel
    data: dict[str, Any]
    precision: str
    tokenizer: str
    """Fingerprint of the tokenizer it was trained with."""
    stride: int
    """Of sliding windows, as the run's config has it."""
    temperature: float
    """That the artifact brings along; 1 for a checkpoint."""
    run: Mapping[str, Any]
    """Resolved config of the training; empty for an artifact, which holds no more than it needs."""
    trust: Trust
    """How far the file is trusted."""


class HeldFile(NamedTuple):
    """What is scored, found once: other processes may replace or remove it meanwhile."""

    key: str
    """The setting that named it."""
    path: Path
    """As it was found, for people."""
    file: Path
    """A name of it that stays."""


@contextmanager
def held_model_file(
    ckpt: str | None, artifact: str | None, folder: Path, trust: Trust
) -> Iterator[HeldFile]:
    """Find the checkpoint or the artifact, and keep it under another name in `folder` inside the block.

    Raises:
        UserError: none or both given, or nothing there that is whole.
    """
    with ExitStack() as stack:
        for _ in range(TRIES):
            key, path = find_model_file(ckpt, artifact, trust)
            sweep_up(path.parent)  # names that a killed process held
            with suppress(FileNotFoundError):  # removed since, by a training beside
                file = stack.enter_context(held(path, folder))
                break
        else:
            raise UserError(f"{key}={path}: removed as often as it was found; name another file")
        yield HeldFile(key, path, file)


def find_model_file(ckpt: str | None, artifact: str | None, trust: Trust) -> tuple[str, Path]:
    """The setting that names what is scored, and its file.

    Raises:
        UserError: none or both given, or nothing there that is whole.
    """
    if (ckpt is None) == (artifact is None):
        raise UserError(
            f"set ckpt_path or artifact_path, one of them (ckpt_path={ckpt}, artifact_path={artifact})"
        )
    if ckpt is not None:
        return "ckpt_path", find_checkpoint(ckpt, trust)
    assert artifact is not None
    return "artifact_path", find_artifact(artifact)


def load_model(ckpt: str | None, artifact: str | None, trust: Trust | None = None) -> LoadedModel:
    """Load the checkpoint or the artifact.

    Raises:
        UserError: none or both given, or a damaged file.
    """
    trust = trust or Trust()
    key, path = find_model_file(ckpt, artifact, trust)
    return read_model(HeldFile(key, path, path), trust)


def read_model(found: HeldFile, trust: Trust) -> LoadedModel:
    """Load what was found.

    Raises:
        UserError: a damaged file, or one that asks for what it may not.
    """
    path = found.path
    if found.key == "ckpt_path":
        return model_of_checkpoint(path, read_checkpoint(found.file, trust), trust)
    loaded = load_artifact(found.file, trust)
    meta = loaded.meta
    here = {
        **meta["data"],
        "cache_dir": "",
    }  # an artifact names no folder of the machine it comes from
    check_part("data", here, f"artifact_path={path}", trust)
    return LoadedModel(
        source=path,
        model=loaded.model,
        data=meta["data"],
        precision=meta["precision"],
        tokenizer=meta["tokenizer"],
        stride=meta["eval"]["stride"],
        temperature=meta["temperature"],
        run={},
        trust=trust,
    )


def model_of_checkpoint(path: Path, checkpoint: dict[str, Any], trust: Trust) -> LoadedModel:
    """What a checkpoint that has been read holds."""
    run, source = checkpoint["hyper_parameters"]["config"], f"ckpt_path={path}"
    check_part("data", run["data"], source, trust)
    return LoadedModel(
        source=path,
        model=inference_model(checkpoint, source, trust),
        data=run["data"],
        precision=run["trainer"]["precision"],
        tokenizer=checkpoint["tokenizer"],
        stride=run["eval"]["stride"],
        temperature=1.0,
        run=run,
        trust=trust,
    )


def weights_of(loaded: LoadedModel) -> str:
    """SHA-256 of the weights that are scored.

    Raises:
        UserError: some of them are no numbers.
    """
    weights = dict(loaded.model.named_parameters())
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"{loaded.source}: {name} holds values that are no numbers, so it can be neither scored "
                "nor exported; take an earlier checkpoint"
            )
    return weights_hash(weights)


def _require_text(source: str, data: Mapping[str, Any]) -> None:
    """Say in a line which of the files that the data was read from has moved."""
    tokenizer = data.get("tokenizer")
    model = tokenizer.get("model") if isinstance(tokenizer, Mapping) else None
    named = {"path": data.get("path"), "val_path": data.get("val_path"), "tokenizer.model": model}
    for key, path in named.items():
        if isinstance(path, str) and path and not os.path.exists(os.path.expanduser(path)):
            where = os.path.abspath(os.path.expanduser(path))
            raise UserError(
                f"{source}: was trained with data.{key}={path}, and {where} is not there any more; put it "
                "back, or a link to where it is now"
            )


def load_data(loaded: LoadedModel, changes: dict[str, Any]) -> TokenData:
    """The data that the model was trained beside, with some settings changed.

    Of FineWeb one training shard is downloaded: what reads training text (a temperature, GPTQ, the baselines)
    reads its beginning.

    Raises:
        UserError: the data or its tokenizer is not there any more, or another one, or its config asks for
            what it may not.
    """
    source = str(loaded.source)
    _require_text(source, loaded.data)
    data = build_part("data", {**loaded.data, **changes}, source, loaded.trust)
    if not isinstance(data, TokenData):
        raise UserError(f"{source}: its config builds a {type(data).__name__}, not a TokenData")
    logits = data.val_batch_tokens * loaded.model.vocab_size
    if logits > loaded.trust.limits.tensor_values:
        raise UserError(
            f"eval.batch_tokens={data.val_batch_tokens}: {logits} logits at a time, "
            f"limits.tensor_values={loaded.trust.limits.tensor_values}; set fewer"
        )
    if isinstance(data.corpus, FineWeb) and data.corpus.path is None:
        data.corpus.train_shards = 1
    data.prepare_data()
    data.setup()
    if loaded.tokenizer != data.tokenizer.fingerprint:
        raise UserError(
            f"{loaded.source} was trained with another tokenizer than the data has "
            f"({loaded.tokenizer[:12]}, now {data.tokenizer.fingerprint[:12]}); the text or the "
            "tokenizer file has changed"
        )
    return data


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA where there is one.

    Raises:
        UserError: it is not to be had.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    advice = f"device={name}: not to be had here; auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(advice) from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(advice)
    return device
