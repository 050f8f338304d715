"""The data of one run: prepared shards, open, and how they are cut into batches."""

from __future__ import annotations

import os
from pathlib import Path

from jepa_lm.data.corpora import Austen, FineWeb, TextCorpus
from jepa_lm.data.prepare import Prepared, prepare
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.tokenizers import ByteTokenizer, SentencePieceBPE
from jepa_lm.errors import UserError
from jepa_lm.evaluation.windows import StandardWindows


class TokenData:
    """Data of one run. `TokenDataModule` hands it to Lightning.

    Args:
        corpus: where the text or the shards come from. tokenizer: how it is cut into tokens.
        seq_len: T. batch_tokens: tokens of one optimizer step over all ranks and micro-batches.
        val_batch_tokens: tokens a rank scores at a time.
        order: `stream` (the challenge's) or `shuffle` (windows in random order).
        seed: of the shuffle. cache_dir: where prepared data is kept.
        train_tokens: use only the first n training tokens, None for all.
        path, val_path: a user's files; read through `corpus`, named here to refuse a path that nobody reads.
    """

    def __init__(
        self,
        *,
        corpus: TextCorpus | FineWeb,
        tokenizer: SentencePieceBPE | ByteTokenizer,
        seq_len: int,
        batch_tokens: int,
        val_batch_tokens: int,
        order: str,
        seed: int,
        cache_dir: str,
        train_tokens: int | None = None,
        path: str | None = None,
        val_path: str | None = None,
    ) -> None:
        for key, value in (("seq_len", seq_len), ("batch_tokens", batch_tokens)):
            if value < 1:
                raise UserError(f"data.{key}={value}: at least 1")
        if isinstance(corpus, Austen) and (path is not None or val_path is not None):
            raise UserError(
                f"data.path={path or val_path}: the embedded corpus reads no files (debug=tiny reads it "
                "always); add data=text, or data/corpus=text to keep the tokenizer"
            )
        self.corpus, self.tokenizer_spec = corpus, tokenizer
        self.seq_len, self.batch_tokens = seq_len, batch_tokens
        self.val_batch_tokens, self.order, self.seed = val_batch_tokens, order, seed
        self.train_tokens = train_tokens
        self.cache_dir = Path(os.path.expanduser(cache_dir))
        self.prepared: Prepared | None = None

    def prepare_data(self) -> None:
        """Build or download the shards; runs on one process of each node."""
        prepare(self.corpus, self.tokenizer_spec, self.cache_dir)

    def setup(self) -> None:
        """Open what `prepare_data` left on disk; runs on every process.

        Raises:
            UserError: sequences or batches that the data is too short for.
        """
        if self.prepared is not None:
            return
        self.prepared = prepare(self.corpus, self.tokenizer_spec, self.cache_dir)
        self.tokenizer = self.prepared.tokenizer
        self.streams = {
            "train": TokenStream(self.prepared.train, self.train_tokens),
            "val": TokenStream(self.prepared.val),
        }
        train, val = self.streams["train"].total, self.streams["val"].total
        if val < 2:
            raise UserError(f"data: the validation split holds {val} token; at least 2 are needed")
        for split, tokens in (("training", train), ("validation", val)):
            if self.seq_len >= tokens:
                raise UserError(
                    f"data.seq_len={self.seq_len}: the {split} split holds {tokens} tokens; choose at "
                    f"most {tokens - 1}, or more text"
                )
        if self.batch_tokens >= train:
            raise UserError(
                f"data.batch_tokens={self.batch_tokens}: the training split holds {train} tokens; "
                f"choose at most {train - 1}, or more text"
            )

    def micro_batch_tokens(self, world_size: int, accumulate: int) -> int:
        """Tokens of one rank's micro-batch.

        Raises:
            UserError: the batch does not divide into whole sequences.
        """
        share = world_size * accumulate * self.seq_len
        if self.batch_tokens % share:
            raise UserError(
                f"data.batch_tokens={self.batch_tokens}: must be a multiple of data.seq_len x ranks x "
                f"trainer.accumulate_grad_batches = {self.seq_len} x {world_size} x {accumulate} = {share}"
            )
        return self.batch_tokens // (world_size * accumulate)

    @property
    def val_rows(self) -> int:
        """Sequences that are scored side by side."""
        return max(1, self.val_batch_tokens // self.seq_len)

    def limit_validation(self, tokens: int | None) -> None:
        """Score only the first tokens of the validation split, None for all."""
        assert self.prepared is not None
        self.streams["val"] = TokenStream(self.prepared.val, tokens)

    def val_windows(self) -> StandardWindows:
        """The validation split in windows of `seq_len`."""
        return StandardWindows(self.streams["val"], seq_len=self.seq_len, rows=self.val_rows)
