"""Tokenizers keep every byte and know how many bytes each token represents."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_lm.data.corpora import Austen
from jepa_lm.data.tokenizer_training import LINE, training_lines
from jepa_lm.data.tokenizers import (
    SPACE,
    ByteTokenizer,
    SentencePieceBPE,
    SentencePieceTokenizer,
    TokenBytes,
    Tokenizer,
)
from jepa_lm.utils.errors import UserError

PUBLISHED = Path(os.environ.get("JEPA_LM_FINEWEB_TOKENIZERS", "."))
"""A folder with the challenge's tokenizers, if you have them."""


@cache
def trained() -> SentencePieceTokenizer:
    spec = SentencePieceBPE(vocab_size=400, model=None, train_bytes=300_000)
    return spec.build((b.text for b in Austen().blocks("train")), None)


@cache
def with_dummy_prefix() -> SentencePieceTokenizer:
    """A tokenizer of the FineWeb family: it puts a space before each document, which decoding drops."""
    import io

    import sentencepiece

    out = io.BytesIO()
    text = next(Austen().blocks("train")).text
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n")),
        model_writer=out,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        add_dummy_prefix=True,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    return SentencePieceTokenizer(out.getvalue(), vocab_size=400, source="test")


TOKENIZERS = {
    "bpe": trained,
    "byte256": lambda: ByteTokenizer(vocab_size=256),
    "byte260": lambda: ByteTokenizer(vocab_size=260),
}
AWKWARD = ["a", " ", "\n", "\r", "\t", "\0", SPACE, "\ufffd", "é", "🤔", "<s>", "<0x41>"]
TEXT = st.text(st.characters(codec="utf-8"), max_size=60) | st.lists(
    st.sampled_from(AWKWARD), max_size=12
).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_decode_of_encode_is_the_text(name, text):
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids.tolist()) == text.encode()
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_token_bytes_add_up_to_the_text(name, text):
    assert table_bytes(TOKENIZERS[name](), text) == len(text.encode())


def table_bytes(tokenizer: Tokenizer, text: str, table: TokenBytes | None = None) -> int:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = np.asarray([*bos, *tokenizer.encode(text).tolist()], dtype=np.int64)
    table = table or tokenizer.token_bytes()
    first = int(table.base[ids[0]]) if len(ids) and not bos else 0
    return first + int(table.count(ids[:-1], ids[1:]).sum())


def test_whole_novels_survive():
    tokenizer = trained()
    for block in Austen().blocks("val"):
        assert tokenizer.decode(tokenizer.encode(block.text).tolist()) == block.text.encode()


def test_dummy_prefix_family_counts_the_decoded_text():
    """The space that decoding drops at a document's start counts zero bytes, other spaces one."""
    tokenizer = with_dummy_prefix()
    for text in ("He had a dog", "  two  spaces ", "x", "café\u2026 \u00a0\ufffd?"):
        decoded = tokenizer.decode(tokenizer.encode(text).tolist())
        assert table_bytes(tokenizer, text) == len(decoded)


@pytest.mark.parametrize("factory", [trained, with_dummy_prefix])
def test_audited_bugs_of_published_tables_are_seen(factory):
    """Each planted bug of a published byte table must change the count on real text."""
    tokenizer = factory()
    text = next(Austen().blocks("val")).text[:5000] + " \u2013 \u2014  caf\u00e9 \u2060 end"
    true = table_bytes(tokenizer, text)
    decoded = tokenizer.decode(tokenizer.encode(text).tolist())
    assert true == len(decoded)
    good = tokenizer.token_bytes()
    pieces = [tokenizer._pieces.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    lone_space = np.array([0 if p == SPACE else 1 for p in pieces])
    starts = np.array([p.startswith(SPACE) for p in pieces])
    is_byte = np.array([tokenizer._pieces.is_byte(i) for i in range(tokenizer.vocab_size)])
    bugs = {
        "the lone space counts nothing": TokenBytes(
            good.base * lone_space, good.leading_space & (lone_space > 0), good.boundary
        ),
        "spaces count twice": TokenBytes(good.base + starts, good.leading_space, good.boundary),
        "a byte token counts as U+FFFD": TokenBytes(
            np.where(is_byte, 3, good.base), good.leading_space, good.boundary
        ),
    }
    for bug, table in bugs.items():
        assert table_bytes(tokenizer, text, table) != true, bug


def test_published_rule_for_sentencepiece_tables():
    """len(utf8(piece without a leading U+2581)), byte tokens 1, control tokens 0."""
    tokenizer = with_dummy_prefix()
    table, sp = tokenizer.token_bytes(), tokenizer._pieces
    for i in range(tokenizer.vocab_size):
        piece = sp.id_to_piece(i)
        if sp.is_control(i) or sp.is_unknown(i):
            assert (table.base[i], table.boundary[i]) == (0, True)
        elif sp.is_byte(i):
            assert table.base[i] == 1
        else:
            assert table.base[i] == len(piece.removeprefix(SPACE).encode())
            assert table.leading_space[i] == piece.startswith(SPACE)


@pytest.mark.parametrize("vocab", [1024, 8192])
def test_the_challenges_tokenizers(vocab):
    path = PUBLISHED / f"fineweb_{vocab}_bpe.model"
    if not path.is_file():
        pytest.skip("JEPA_LM_FINEWEB_TOKENIZERS names no folder with it")
    tokenizer = SentencePieceBPE(vocab_size=vocab, model=str(path), train_bytes=1).build((), None)
    for block in Austen().blocks("val"):
        decoded = tokenizer.decode(tokenizer.encode(block.text).tolist())
        assert table_bytes(tokenizer, block.text) == len(decoded)


def test_byte_ids():
    assert ByteTokenizer(vocab_size=256).encode("Aé").tolist() == [65, 0xC3, 0xA9]
    assert ByteTokenizer(vocab_size=260).encode("A").tolist() == [69]
    assert ByteTokenizer(vocab_size=260).bos_id == 1
    assert ByteTokenizer(vocab_size=260).decode([1, 69, 2]) == b"A"


def test_errors_name_the_setting(tmp_path):
    with pytest.raises(UserError, match="vocab_size=255: expected one of 256, 260"):
        ByteTokenizer(vocab_size=255)
    path = tmp_path / "t.model"
    trained().save(path)
    with pytest.raises(UserError, match=r"vocab_size=1024: .*t\.model has 400 pieces"):
        SentencePieceBPE(vocab_size=1024, model=str(path), train_bytes=1).build((), None)
    (tmp_path / "junk.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        SentencePieceBPE(vocab_size=1024, model=str(tmp_path / "junk.model"), train_bytes=1).build(
            (), None
        )
    with pytest.raises(UserError, match="no such file"):
        SentencePieceBPE(vocab_size=9, model=str(tmp_path / "no"), train_bytes=1).build((), None)


@pytest.mark.parametrize(
    ("text", "size", "words"),
    [
        (["a short text"], 5000, r"it supports at most 286 pieces; set that many or fewer"),
        (["a short text"], 100, r"its bytes and characters need 268 pieces; set that many or more"),
        (["\n\n\n"], 300, "it contains only line ends; give more text"),
    ],
)
def test_a_tokenizer_that_cannot_be_trained_says_why_and_what_to_do(text, size, words):
    with pytest.raises(UserError, match=rf"^data\.tokenizer\.vocab_size={size}: .*{words}"):
        SentencePieceBPE(vocab_size=size, model=None, train_bytes=1000).build(text, None)


@pytest.mark.parametrize("size", [0, -5, 65_537, 70_000])
def test_a_vocabulary_that_does_not_fit_16_bits_is_refused_before_anything_is_read(size):
    with pytest.raises(
        UserError, match=f"^vocab_size={size}: expected a whole number from 1 to 65536"
    ):
        SentencePieceBPE(vocab_size=size, model="/no/such/file", train_bytes=1000)


def test_what_goes_wrong_in_the_text_is_not_blamed_on_the_vocabulary():
    def text(error):
        yield "some words that are read before\n" * 50
        raise error

    spec = SentencePieceBPE(vocab_size=300, model=None, train_bytes=10_000)
    for error in (
        UserError("data.path=x: line 8 is no text"),
        OSError("gone"),
        KeyboardInterrupt(),
    ):
        with pytest.raises(type(error)) as caught:
            spec.build(text(error), None)
        assert caught.value is error


def test_lines_that_the_trainer_would_leave_out_are_trained_on():
    """Lines with the trainer's sign for unknown characters, and lines of more than 16 MiB."""
    text = "".join(f"\u2585 number {i} of the words\n" for i in range(300))
    tokenizer = SentencePieceBPE(vocab_size=300, model=None, train_bytes=10**6).build([text], None)
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text.encode()
    assert len(tokenizer.encode("number")) < 4
    line = "ab" * (1 << 20)
    cut = [len(part) for part in training_lines([line, line[1:], "\n", "end"], 10**8)]
    assert cut == [LINE, LINE, LINE, LINE - 1, 3]


def test_a_damaged_model_is_one_line(tmp_path):
    whole = bytearray(trained().model)
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "t.model", 0
    for i in range(150):
        model = whole[: rng.integers(len(whole))] if i % 3 == 0 else whole.copy()
        if model and i % 3:
            places = rng.integers(len(model), size=8)
            model[int(places[0]) : int(places[0]) + i % 2 * 9] = b""
            for place in places % len(model):
                model[place] = rng.integers(256)
        path.write_bytes(model)
        try:
            found = SentencePieceBPE(vocab_size=400, model=str(path), train_bytes=1).build((), None)
        except UserError as error:
            refused += "\n" not in str(error)
        else:
            found.decode(found.encode("some text \u2581 \u00e9\0").tolist())
            found.token_bytes()
            found.safe_cut("some text", 1)
    assert refused > 100
    for content, words in ((b"", "is not a SentencePiece"), (bytes(1 << 27), "more than")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            SentencePieceBPE(vocab_size=400, model=str(path), train_bytes=1).build((), None)
