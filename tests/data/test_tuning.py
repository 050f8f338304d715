"""Text kept for the choice of settings: neither trained on nor the text of the verdict."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from jepa_lm.data.corpora import Austen
from jepa_lm.data.stream import TokenStream
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.errors import UserError


def joined(corpus: Austen, split: str) -> str:
    return "".join(block.text for block in corpus.blocks(split))


def test_a_novel_is_neither_training_nor_validation_and_can_be_scored():
    plain, kept, scored = Austen(), Austen(), Austen()
    kept.keep_novel(scored=False)
    scored.keep_novel(scored=True)
    novel = joined(scored, "val")
    assert len(novel) > 300_000
    assert "Catherine" in novel
    assert joined(kept, "val") == joined(plain, "val")
    train = joined(kept, "train")
    assert train == joined(scored, "train")
    assert novel not in train
    assert novel in joined(plain, "train")
    assert len(train) + len(novel) == len(joined(plain, "train"))
    assert len({corpus.fingerprint() for corpus in (plain, kept, scored)}) == 3


def data_of(small, *overrides):
    data = build("data", resolve(small(*overrides))["data"])
    data.setup()
    return data


def tokens_of(stream: TokenStream) -> list[int]:
    out = np.empty(stream.total, dtype=np.int64)
    stream.read(0, out)
    return out.tolist()


def test_the_last_tokens_of_training_can_be_kept(small):
    whole = tokens_of(data_of(small).streams["train"])
    kept = data_of(small, "data.tuning=3000")
    assert tokens_of(kept.streams["train"]) == whole[:-3000]
    scored = data_of(small, "data.tuning=3000", "data.validate_on=tuning")
    assert tokens_of(scored.streams["train"]) == whole[:-3000]
    assert tokens_of(scored.streams["val"]) == whole[-3000:]
    assert tokens_of(kept.streams["val"]) == tokens_of(data_of(small).streams["val"])
    assert scored.split("val").first_bytes(50).decode(errors="replace")
    more = data_of(small, "data.tuning=3000", "data.train_tokens=100000000")
    assert tokens_of(more.streams["train"]) == whole[:-3000]


def test_a_tail_over_several_shards():
    stream = TokenStream._over([np.arange(5), np.arange(5, 8), np.arange(8, 20)], 18)
    rest, tail = stream.parted(11)
    assert tokens_of(rest) == [*range(7)]
    assert tokens_of(tail)[:11] == [*range(7, 18)]
    assert tail.total == 11
    assert tokens_of(stream.parted(0)[0]) == [*range(18)]


def test_settings_of_the_data_reach_the_novels(compose):
    def corpus(*overrides):
        return build("data", resolve(compose("train", "data=austen", *overrides))["data"]).corpus

    assert corpus().held_out == {Austen.VALIDATION}
    assert corpus("data.tuning=novel").validation == Austen.VALIDATION
    scored = corpus("data.tuning=novel", "data.validate_on=tuning")
    assert (scored.validation, len(scored.held_out)) == (Austen.TUNING, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.validate_on=tuning",), r"data\.validate_on=tuning: needs data\.tuning"),
        (("data.tuning=novel",), r"data\.tuning=novel: only the embedded corpus has novels"),
        (("data.tuning=100000000",), r"data\.tuning=100000000: the training split holds \d+ tok"),
        (("data=hmm", "data.tuning=10"), r"data\.tuning=10: rows from a law"),
    ],
)
def test_what_cannot_be_kept_is_told(small, compose, overrides, message):
    if "data=hmm" in overrides:
        small = partial(compose, "train")
    with pytest.raises(UserError, match=message):
        data_of(small, *overrides)
