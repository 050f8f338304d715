"""Load the model to score, from a checkpoint or an artifact, with the data settings of its training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from jepa_lm.artifact.loading import load_artifact, weights_hash
from jepa_lm.artifact.publishing import find_artifact
from jepa_lm.artifact.tokenizer import own_tokenizer
from jepa_lm.data.token_data import TokenData
from jepa_lm.data.tokenizers import GivenTokenizer, Tokenizer
from jepa_lm.model import LanguageModel
from jepa_lm.model.checkpoint import TRIES, find_checkpoint, inference_model, read_checkpoint
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import held, sweep_up
from jepa_lm.utils.nested import at
from jepa_lm.utils.paths import program
from jepa_lm.utils.trusted import Trust, build_part, check_part


class LoadedModel(NamedTuple):
    """A model with the settings of its training."""

    source: Path
    model: LanguageModel
    data: dict[str, Any]
    precision: str
    tokenizer: str
    """Fingerprint of the tokenizer it was trained with."""
    stride: int
    """Stride of sliding windows in the run's config."""
    temperature: float
    """Temperature stored in the artifact; 1 for a checkpoint."""
    run: Mapping[str, Any]
    """Resolved training config; empty for an artifact, which does not store it."""
    trust: Trust
    """Trusted modules and limits that apply to the file."""
    stored_tokenizer: bytes | None
    """Serialized tokenizer that the file holds, if any."""

    def own_tokenizer(self) -> Tokenizer | None:
        """Return the model's tokenizer, or None if it is not at hand without the data."""
        size = self.model.vocab_size
        return own_tokenizer(self.tokenizer, size, self.stored_tokenizer, self.source)


class HeldFile(NamedTuple):
    """The file to score, found once: other processes may replace or remove it in the meantime."""

    key: str
    """Setting that named the file."""
    path: Path
    """Path as it was found, for messages."""
    file: Path
    """Second name of the file, which stays valid."""


@contextmanager
def held_model_file(
    ckpt: str | None, artifact: str | None, folder: Path, trust: Trust
) -> Iterator[HeldFile]:
    """Find the checkpoint or artifact and keep it under a second name in `folder` during the block.

    Raises:
        UserError: neither or both are given, or no complete file was found.
    """
    with ExitStack() as stack:
        for _ in range(TRIES):
            key, path = find_model_file(ckpt, artifact, trust)
            sweep_up(path.parent)  # second names left behind by a killed process
            with suppress(FileNotFoundError):  # removed by a concurrent training run
                file = stack.enter_context(held(path, folder))
                break
        else:
            raise UserError(f"{key}={path}: was removed each time it was found; name another file")
        yield HeldFile(key, path, file)


def find_model_file(ckpt: str | None, artifact: str | None, trust: Trust) -> tuple[str, Path]:
    """Return the setting that names the file to score, and the file's path.

    Raises:
        UserError: neither or both are given, or no complete file was found.
    """
    if (ckpt is None) == (artifact is None):
        raise UserError(
            f"set ckpt_path or artifact_path, just one of them (ckpt_path={ckpt}, artifact_path={artifact})"
        )
    if ckpt is not None:
        return "ckpt_path", find_checkpoint(ckpt, trust)
    assert artifact is not None
    return "artifact_path", find_artifact(artifact)


def load_model(ckpt: str | None, artifact: str | None, trust: Trust | None = None) -> LoadedModel:
    """Load the checkpoint or the artifact.

    Raises:
        UserError: neither or both are given, or the file is damaged.
    """
    trust = trust or Trust()
    key, path = find_model_file(ckpt, artifact, trust)
    return read_model(HeldFile(key, path, path), trust)


def read_model(found: HeldFile, trust: Trust) -> LoadedModel:
    """Load the model from a file that was found.

    Raises:
        UserError: the file is damaged or asks for something that is not allowed.
    """
    path = found.path
    if found.key == "ckpt_path":
        return model_of_checkpoint(path, read_checkpoint(found.file, trust), trust)
    loaded = load_artifact(found.file, trust)
    meta = loaded.meta
    here = {
        **meta["data"],
        "cache_dir": "",
    }  # artifacts store no cache folder
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
        stored_tokenizer=loaded.tokenizer,
    )


def model_of_checkpoint(path: Path, checkpoint: dict[str, Any], trust: Trust) -> LoadedModel:
    """Build the model from a checkpoint that has been read."""
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
        stored_tokenizer=None,
    )


def weights_of(loaded: LoadedModel) -> str:
    """Return the SHA-256 of the weights to score.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    weights = dict(loaded.model.named_parameters())
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"{loaded.source}: {name} holds values that are NaN or infinite, so it can be neither "
                "scored nor exported; use an earlier checkpoint"
            )
    return weights_hash(weights)


def _require_text(source: str, loaded: LoadedModel) -> None:
    """Check that the files that the data was read from still exist."""
    for key in ("path", "val_path", "tokenizer.model"):
        path = at(loaded.data, *key.split("."))
        if not isinstance(path, str) or not path or os.path.exists(os.path.expanduser(path)):
            continue
        if key == "tokenizer.model" and loaded.own_tokenizer() is not None:
            continue
        where = os.path.abspath(os.path.expanduser(path))
        raise UserError(
            f"{source}: was trained with data.{key}={path}, but {where} no longer exists; restore it "
            f"or link it to its new place ({program('eval')} scores any other text with data.path=FILE)"
        )


def check_batch(loaded: LoadedModel, tokens: int) -> None:
    """Check that the logits of a batch stay within the limits.

    Raises:
        UserError: too many.
    """
    logits, most = tokens * loaded.model.vocab_size, loaded.trust.limits.tensor_values
    if logits > most:
        raise UserError(
            f"eval.batch_tokens={tokens}: {logits} logits per batch exceed limits.tensor_values={most}; use "
            "fewer tokens"
        )


def load_data(loaded: LoadedModel, changes: dict[str, Any]) -> TokenData:
    """Load the data that the model was trained on, with some settings changed.

    At most one training shard is downloaded: temperature search, GPTQ and the baselines read the start of
    the training text.

    Raises:
        UserError: the data or its tokenizer is missing or has changed, or its config asks for something that
            is not allowed.
    """
    source = str(loaded.source)
    _require_text(source, loaded)
    data = build_part("data", {**loaded.data, **changes}, source, loaded.trust)
    if not isinstance(data, TokenData):
        raise UserError(f"{source}: its config builds a {type(data).__name__}, not a TokenData")
    check_batch(loaded, data.val_batch_tokens)
    if not data.is_prepared() and (own := loaded.own_tokenizer()) is not None:
        data.tokenizer_source = GivenTokenizer(own)
    data.prepare_data(most_train=1)
    data.setup()
    if loaded.tokenizer != data.tokenizer.fingerprint:
        raise UserError(
            f"{loaded.source} was trained with a different tokenizer from the one the data has "
            f"({loaded.tokenizer[:12]}, now {data.tokenizer.fingerprint[:12]}); the text or the "
            "tokenizer file has changed"
        )
    return data


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is CUDA if available, else the CPU.

    Raises:
        UserError: the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    advice = f"device={name} is not available on this machine; use auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(advice) from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(advice)
    return device
