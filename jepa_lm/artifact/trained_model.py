"""A trained model to work with: it continues text, scores it, and shows its hidden states."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_lm.artifact.hub_repo import cached, model_repo
from jepa_lm.artifact.loaded_model import LoadedModel, load_data, load_model, pick_device
from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.hub_listing import SCHEME
from jepa_lm.data.split import Split
from jepa_lm.data.text_files import encoded
from jepa_lm.data.tokenizers import Tokenizer
from jepa_lm.data.whole_text import split_of_text
from jepa_lm.evaluation.bpb import score_from_sums
from jepa_lm.evaluation.continuations import LogLikelihood, encode_pair, log_likelihoods
from jepa_lm.evaluation.sampling import continued
from jepa_lm.evaluation.scoring import Scorer, scores_of_targets
from jepa_lm.model import LanguageModel
from jepa_lm.objective.taps import Tap, check_tap, read_tap, tapped_layers
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.finding import as_path, holds_artifact
from jepa_lm.utils.kinds import NotNegative, Seed, Whole, check_type
from jepa_lm.utils.trusted import Trust

SETTING = re.compile(r"^(ckpt|artifact)_path=")


class TextScore(NamedTuple):
    """Scores of the N targets of a text: every token after the first."""

    tokens: np.ndarray
    """Ids [N], int64."""
    nats: np.ndarray
    """Negative log likelihood of each [N], float64."""
    bytes: np.ndarray
    """Bytes of text that each stands for [N], float64."""

    @property
    def bpb(self) -> float:
        """Bits per byte of the whole text; nats per token of what has no bytes."""
        return score_from_sums(self.nats.sum(), len(self.nats), self.bytes.sum()).value


class TrainedModel:
    """A model with its tokenizer, loaded from an artifact, a checkpoint or a run folder; see `load`.

    Args:
        loaded: the model and the settings of its training. tokenizer: what it was trained with.
        device: where it runs.
    """

    def __init__(self, loaded: LoadedModel, tokenizer: Tokenizer, device: torch.device) -> None:
        self._loaded, self.tokenizer, self.device = loaded, tokenizer, device
        self.model: LanguageModel = loaded.model.to(device).eval()
        """The PyTorch module."""

    @property
    def path(self) -> Path:
        """File that the model was loaded from."""
        return self._loaded.source

    @property
    def config(self) -> dict[str, Any]:
        """Resolved training config; empty for an artifact, which does not hold it."""
        return dict(self._loaded.run)

    @property
    def seq_len(self) -> int:
        """Length of the windows that the model was trained on."""
        return int(self._loaded.data["seq_len"])

    def generate(
        self,
        prompt: str | None = None,
        tokens: int = 200,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> str:
        """Return a prompt and its continuation; it ends early at the end of a document.

        Args:
            prompt: None for the start of a document. tokens: most tokens to draw.
            temperature: 0 takes the most likely token each time.

        Raises:
            UserError: a number out of range.
        """
        return "".join(self._continued(prompt, tokens, temperature, seed))

    def continuation(
        self,
        prompt: str,
        tokens: int = 200,
        temperature: float = 0.8,
        seed: int = 0,
        until: Sequence[str] = (),
    ) -> str:
        """Return what `generate` adds to a prompt, up to the first of the texts `until`.

        Raises:
            UserError: a number out of range.
        """
        return self._continued(prompt, tokens, temperature, seed, until)[1]

    def _continued(
        self,
        prompt: str | None,
        tokens: int,
        temperature: float,
        seed: int,
        until: Sequence[str] = (),
    ) -> tuple[str, str]:
        return continued(
            self.model,
            self.tokenizer,
            prompt=_given("prompt", prompt, str | None),
            tokens=_given("tokens", tokens, Whole),
            temperature=_given("temperature", temperature, NotNegative),
            seed=_given("seed", seed, Seed),
            context=self.seq_len,
            until=_given("until", until, list[str]),
        )

    def nll(self, text: str) -> TextScore:
        """Score each token of a text, as one document, in windows side by side (`eval=standard`).

        Raises:
            UserError: a blank text.
        """
        split = self._split(text)
        found = list(scores_of_targets(self._scorer(split.byte_counter()), split.windows()))
        nats, n_bytes = (
            torch.cat([x.double().flatten() for x in parts]).cpu().numpy()
            for parts in ([part.nats for part in found], [part.bytes for part in found])
        )
        return TextScore(self._ids(split)[1:], nats, n_bytes)

    def log_likelihoods(
        self, pairs: Sequence[tuple[str, str]], rows: int | None = None
    ) -> list[LogLikelihood]:
        """Return `nats` and `greedy` for pairs of a context, which may be empty, and its continuation.

        Windows are as full as the text allows, so a long text has other scores than in `nll`.

        Args:
            rows: windows scored at a time; None for as many as validation does.

        Raises:
            UserError: a continuation without a token.
        """
        for context, continuation in pairs:
            _given("context", context, str)
            _given("continuation", continuation, str)
        texts = [encode_pair(self.tokenizer, *pair) for pair in pairs]
        scorer = self._scorer(ByteCounter(self.tokenizer.token_bytes()))
        rows = rows or max(1, int(self._loaded.data["val_batch_tokens"]) // self.seq_len)
        return log_likelihoods(scorer, texts, seq_len=self.seq_len, rows=rows)

    def score(self, text: str) -> float:
        """Return the bits per byte of a text, as `eval.py data.path=FILE` does of a file with this text.

        Raises:
            UserError: a blank text.
        """
        return self.nll(text).bpb

    @torch.inference_mode()
    def hidden(self, text: str, tap: Tap = "final") -> Tensor:
        """Return the hidden states of a text [N, D], on the CPU; one window, however long it is.

        Args:
            tap: `final`, `last`, `embedding`, a block's number, ...; see `jepa_lm.objective.taps`.

        Raises:
            UserError: a blank text, or the model has no such hidden state.
        """
        check_tap(self.model, tap, "tap")
        ids = torch.from_numpy(self._ids(self._split(text)))[None].to(self.device)
        encoded = self.model.encode(self.model.embed(ids), tapped_layers(self.model, tap))
        return read_tap(self.model, encoded, tap)[0].float().cpu()

    def _scorer(self, byte_counter: ByteCounter) -> Scorer:
        scorer = Scorer.of(self.model, byte_counter, self.device, self._loaded.precision)
        return scorer._replace(temperature=self._loaded.temperature)

    def _split(self, text: str) -> Split:
        batch = int(self._loaded.data["val_batch_tokens"])
        return split_of_text(
            _given("text", text, str), self.tokenizer, seq_len=self.seq_len, batch_tokens=batch
        )

    @staticmethod
    def _ids(split: Split) -> np.ndarray:
        ids = np.empty(split.stream.total, dtype=np.int64)
        split.stream.read(0, ids)
        return ids


def _given(name: str, value: Any, hint: Any) -> Any:
    """Return an argument, a number of NumPy's as Python's.

    Raises:
        UserError: it is not what the type hint says, or not valid text.
    """
    value = value.item() if isinstance(value, np.generic) else value
    check_type(name, value, hint)
    if isinstance(value, str):
        try:
            encoded(value)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
    return value


def load_trained(path: str, device: str, trust: Trust, cache_dir: str) -> TrainedModel:
    """See `jepa_lm.load`.

    Args:
        cache_dir: folder for what is fetched from the hub, and for data that is prepared to get a tokenizer
            that is not at hand.

    Raises:
        UserError: no such file or repo, damaged, or its tokenizer cannot be had.
    """
    if path.startswith(SCHEME):
        path = str(cached(model_repo("path", path), cache_dir))
    is_artifact = holds_artifact(as_path("path", path))
    try:
        loaded = load_model(None, path, trust) if is_artifact else load_model(path, None, trust)
    except UserError as error:  # which names a setting that nobody wrote
        raise UserError(SETTING.sub("path=", str(error))) from error
    tokenizer = loaded.own_tokenizer()
    if tokenizer is None:  # of an earlier version, or exported without: it comes with the data
        tokenizer = load_data(loaded, {"cache_dir": cache_dir}).tokenizer
    return TrainedModel(loaded, tokenizer, pick_device(device))
