"""The data of a run: its prepared shards, opened, and the way they are cut into batches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from jepa_lm.data.corpora import SPLITS, Austen, ShardCorpus, TextCorpus
from jepa_lm.data.passes import Passes
from jepa_lm.data.prepare import Prepared, is_prepared, prepare
from jepa_lm.data.related import WithRelated
from jepa_lm.data.rows import VIEWS, RowCorpus, RowOrder, Rows
from jepa_lm.data.split import Split
from jepa_lm.data.stream import Order, TokenStream, make_order
from jepa_lm.data.symbols import Symbols
from jepa_lm.data.text_splits import MOST_HELD_OUT
from jepa_lm.data.tokenizers import ByteTokenizer, SentencePieceBPE, TokenizerSource
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import Count, Seed, Share, checked


class TokenData:
    """The data of a run. `TokenDataModule` passes it to Lightning.

    Args:
        corpus: source of the text or the shards. tokenizer: how the text is split into tokens.
        seq_len: T. batch_tokens: tokens of one optimizer step over all ranks and micro-batches.
        val_batch_tokens: tokens that a rank scores at a time.
        order: `stream` (the challenge's) or `shuffle` (windows in random order).
        seed: seed of the shuffle. cache_dir: folder for prepared data.
        train_tokens: use only the first n training tokens, None for all.
        path, val_path: a user's files; read through `corpus`, given here to refuse a path that is not read.
        train_shards: FineWeb's; read through `corpus`, accepted here so that other corpora may be given it.
        tuning: text kept for the choice of settings, never trained on: `novel`, see `Austen`, or the last n
            tokens of the training split. validate_on: `tuning` scores it in place of the validation split.
        noise: share of the main pass's input tokens that training replaces by random ones; the task does it.
    """

    @checked
    def __init__(
        self,
        *,
        corpus: TextCorpus | ShardCorpus,
        tokenizer: SentencePieceBPE | ByteTokenizer | Symbols,
        seq_len: Count,
        batch_tokens: Count,
        val_batch_tokens: Count,
        order: Literal["stream", "shuffle"],
        seed: Seed,
        cache_dir: str,
        train_tokens: Count | None = None,
        path: str | None = None,
        val_path: str | None = None,
        train_shards: Count = 1,
        tuning: Literal["novel"] | Count | None = None,
        validate_on: Literal["validation", "tuning"] = "validation",
        noise: Share | None = None,
    ) -> None:
        if not cache_dir.strip():
            raise UserError("data.cache_dir: is empty; name a folder for prepared data")
        for key, named in (("path", path), ("val_path", val_path)):
            if isinstance(corpus, Austen) and named is not None:
                raise UserError(
                    f"data.{key}={named}: the embedded corpus reads no files; add data=text, or with "
                    "debug=tiny, which always uses that corpus, data/corpus=text"
                )
            if isinstance(corpus, RowCorpus) and not corpus.reads_files and named is not None:
                raise UserError(
                    f"data.{key}={named}: generated rows read no files; add data=text or data=pairs"
                )
        _check_tuning(corpus, tuning, validate_on)
        if isinstance(corpus, Austen) and tuning == "novel":
            corpus.keep_novel(scored=validate_on == "tuning")
        if isinstance(corpus, RowCorpus):
            _check_rows(corpus, tokenizer, seq_len, order, train_tokens)
        elif isinstance(tokenizer, Symbols):
            raise UserError(
                "data.tokenizer: Symbols are for generated rows; text needs another tokenizer"
            )
        self.rows: dict[str, Rows] = {}
        """Opened rows by split, if the data are rows that are examples."""
        self.corpus = corpus
        self.tokenizer_source: TokenizerSource = tokenizer
        self.seq_len, self.batch_tokens = seq_len, batch_tokens
        self.val_batch_tokens, self.order, self.seed = val_batch_tokens, order, seed
        self.train_tokens = train_tokens
        self.tuning_tokens = tuning if isinstance(tuning, int) else 0
        self.on_tuning_tokens = bool(self.tuning_tokens) and validate_on == "tuning"
        self.cache_dir = Path(os.path.expanduser(cache_dir))
        self.prepared: Prepared | None = None
        self.streams: dict[str, TokenStream] = {}

    def is_prepared(self) -> bool:
        """Return whether the cache holds this data."""
        return is_prepared(self.corpus, self.tokenizer_source, self.cache_dir)

    def prepare_data(self, most_train: int | None = None) -> None:
        """Build or download the shards; runs on one process of each node.

        Args:
            most_train: see `ShardCorpus.shards`.
        """
        if self.prepared is None:
            self.prepared = prepare(self.corpus, self.tokenizer_source, self.cache_dir, most_train)

    def setup(self) -> None:
        """Open what `prepare_data` left on disk; runs on every process.

        Raises:
            UserError: the data is too short for the sequences or batches.
        """
        if self.streams:
            return
        self.prepare_data()
        assert self.prepared is not None
        self.tokenizer = self.prepared.tokenizer
        if isinstance(self.corpus, RowCorpus):
            self.rows = self.corpus.opened()
        rest, tuning = TokenStream(self.prepared.train).parted(self.tuning_tokens)
        self.streams = {
            "train": rest.first(self.train_tokens),
            "val": tuning if self.on_tuning_tokens else TokenStream(self.prepared.val),
        }
        train, val = self.streams["train"].total, self.streams["val"].total
        if val < 2:
            raise UserError(f"data: the validation split holds {val} token; at least 2 are needed")
        for split, tokens in (("training", train), ("validation", val)):
            if self.seq_len >= tokens:
                raise UserError(
                    f"data.seq_len={self.seq_len}: the {split} split holds {tokens} tokens; choose at "
                    f"most {tokens - 1}, or use more text"
                )
        if self.batch_tokens >= train:
            raise UserError(
                f"data.batch_tokens={self.batch_tokens}: the training split holds {train} tokens; "
                f"choose at most {train - 1}, or use more text"
            )

    def split(self, name: str) -> Split:
        """Return the split `train` or `val`, opened by `setup`."""
        assert self.prepared is not None
        texts, corpus = self.prepared.texts, self.corpus
        # Tokens of the training split that stand in for the validation split have no text of their own.
        whole = name == "train" or not self.on_tuning_tokens
        texts = texts if whole else None
        return Split(
            stream=self.streams[name],
            tokenizer=self.tokenizer,
            seq_len=self.seq_len,
            batch_tokens=self.val_batch_tokens,
            text=None if texts is None else texts[name],
            blocks=(
                (lambda: corpus.blocks(name))
                if whole and not isinstance(corpus, ShardCorpus)
                else None
            ),
            examples=self.rows.get(name),
        )

    @property
    def fields(self) -> dict[str, int]:
        """Width K of the fields [B, T, K] that a batch has beside its tokens, and of its views [B, K]."""
        train = self.rows.get("train")
        found = {} if train is None else train.fields
        return {name: x.shape[-1] for name, x in found.items() if x.ndim == 3 or name == VIEWS}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what a validation measures; known before the data is prepared."""
        bits = () if isinstance(self.tokenizer_source, Symbols) else ("val/bpb",)
        shares = self.corpus.shares if isinstance(self.corpus, RowCorpus) else ()
        return (*bits, "val/nll", *(f"val/{name}" for name in shares))

    def check_metric(self, metric: str | None) -> None:
        """Refuse a metric that these data do not have; None is any data's loss.

        Raises:
            UserError: names those that they have.
        """
        if metric is not None and metric not in self.metrics:
            raise UserError(f"metric={metric}: these data have {', '.join(self.metrics)}")

    def in_words(self) -> str:
        """Return the sizes of the splits and validation's share, for the first lines of a run."""
        sizes, unit = self._sizes()
        share = sizes["val"] / sum(sizes.values())
        if self.rows:
            train, val = (len(self.rows[split].tokens) for split in SPLITS)
            floor = self.rows["val"].floor
            known = "" if floor is None else f"; no model can score below {floor:.4f} nats"
            return f"{train:,} rows of {self.seq_len} tokens to train on, {val:,} to validate on{known}"
        return f"{sizes['train']:,} {unit} of text to train on, {sizes['val']:,} ({share:.0%}) to validate on"

    def cautions(self) -> list[str]:
        """Return warnings about the text, shown before training."""
        sizes, _ = self._sizes()
        share, found = sizes["val"] / sum(sizes.values()), list(self.corpus.remarks)
        if share > MOST_HELD_OUT and not isinstance(self.corpus, ShardCorpus):
            found.append(
                f"{share:.0%} of the text is held out for validation and not trained on; "
                "data.corpus.val_fraction or data.val_path change that"
            )
        return found

    def _sizes(self) -> tuple[dict[str, int], str]:
        assert self.prepared is not None
        if self.prepared.texts is not None and not self.tuning_tokens:
            return {split: text.bytes for split, text in self.prepared.texts.items()}, "bytes"
        return {split: stream.total for split, stream in self.streams.items()}, "tokens"

    def micro_batch_tokens(self, world_size: int, accumulate: int) -> int:
        """Return the number of tokens in one rank's micro-batch.

        Raises:
            UserError: the batch does not divide into whole sequences.
        """
        share = world_size * accumulate * self.seq_len
        if self.batch_tokens % share:
            raise UserError(
                f"data.batch_tokens={self.batch_tokens}: must be a multiple of data.seq_len x ranks x "
                f"trainer.accumulate_grad_batches = {self.seq_len} x {world_size} x {accumulate} = {share}, "
                f"such as {max(1, round(self.batch_tokens / share)) * share}"
            )
        return self.batch_tokens // (world_size * accumulate)

    def order_of(self, rank: int, world_size: int, accumulate: int) -> Order:
        """Return the order of the tokens in this rank's micro-batches.

        Raises:
            UserError: unknown order, or a batch that does not divide into whole sequences.
        """
        if self.rows:
            tokens = self.micro_batch_tokens(world_size, accumulate)
            return RowOrder(
                self.rows["train"],
                count=tokens // self.seq_len,
                rank=rank,
                world_size=world_size,
                seed=self.seed,
            )
        return make_order(
            self.order,
            tokens=self.micro_batch_tokens(world_size, accumulate),
            seq_len=self.seq_len,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
        )

    def with_related(self, order: Order, *, speak: bool) -> Order:
        """Return an order whose batches say which of their rows are of one document; see `WithRelated`."""
        return WithRelated(
            order,
            seq_len=self.seq_len,
            document_start=self.tokenizer.bos_id,
            examples=bool(self.rows),
            speak=speak,
        )

    def passes(self, world_size: int, accumulate: int) -> Passes:
        """Return how often a run reads the training split, for `accumulate` micro-batches per step and rank.

        Raises:
            UserError: see `order_of`.
        """
        order = self.order_of(0, world_size, accumulate)
        taken, whole = order.share(self.streams["train"].total)
        return Passes(accumulate * taken, whole, self._more_text())

    def _more_text(self) -> str:
        if self.train_tokens is not None:
            return f"more tokens than data.train_tokens={self.train_tokens}"
        if isinstance(self.corpus, ShardCorpus):
            return self.corpus.remedy
        return "more text (data=text data.path=FOLDER)"

    def limit_validation(self, tokens: int | None) -> None:
        """Score only the first `tokens` tokens of the validation split, None for all."""
        if self.rows and tokens is not None:
            self.rows["val"] = self.rows["val"].first(max(1, tokens // self.seq_len))
        assert self.prepared is not None
        self.streams["val"] = self.streams["val"].first(tokens)


def _check_tuning(
    corpus: TextCorpus | ShardCorpus, tuning: str | int | None, validate_on: str
) -> None:
    """Check that there is the text for tuning that is asked for."""
    if tuning is None and validate_on == "tuning":
        raise UserError("data.validate_on=tuning: needs data.tuning, such as data.tuning=novel")
    if tuning is not None and isinstance(corpus, RowCorpus):
        raise UserError(
            f"data.tuning={tuning}: rows from a law or of pairs have no text for tuning"
        )
    if tuning == "novel" and not isinstance(corpus, Austen):
        raise UserError(
            "data.tuning=novel: only the embedded corpus has novels; give a number of tokens, such as "
            "data.tuning=100000, which are the last of the training split"
        )


def _check_rows(
    corpus: RowCorpus,
    tokenizer: TokenizerSource,
    seq_len: int,
    order: str,
    train_tokens: int | None,
) -> None:
    """Check that the settings of the data fit rows that are examples."""
    corpus.check(tokenizer, seq_len)
    if order != "shuffle":
        raise UserError(f"data.order={order}: rows are shuffled; use data.order=shuffle")
    if train_tokens is not None:
        raise UserError(
            f"data.train_tokens={train_tokens}: rows are counted; use {corpus.counted_by}"
        )
