"""The tokenizer travels with the model: inside the artifact or beside it, and is read as a hostile file."""

from __future__ import annotations

import hashlib

import pytest

from jepa_lm.artifact.loaded_model import load_model
from jepa_lm.artifact.loading import TOKENIZER, load_artifact
from jepa_lm.artifact.tokenizer import own_tokenizer, serialized
from jepa_lm.data import sentencepiece_check
from jepa_lm.data.corpora import ShardCorpus
from jepa_lm.data.sentencepiece_check import checked_tokenizer
from jepa_lm.data.tokenizers import ByteTokenizer
from jepa_lm.run import evaluate
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.paths import TOKENIZER_FILE
from tests.artifact.forging import pack, unpack

QUICK = ("export.codecs=[zlib]", "export.protocols=[]")


def test_inside_counts_and_is_told_apart(exporting):
    inside, none = exporting(*QUICK), exporting(*QUICK, "export.tokenizer=none")
    assert inside["tokenizer"] == "inside"
    assert inside["bytes"] - inside["tokenizer_bytes"] == pytest.approx(none["bytes"], abs=8)
    assert none["tokenizer_bytes"] == 0
    assert inside["tokenizer_bytes"] > 1000
    file = exporting.folder / "artifact.zlib"
    assert load_artifact(file).tokenizer is None
    assert load_model(None, str(file)).own_tokenizer() is None


def test_beside_is_found_by_its_fingerprint_and_not_counted(exporting, trained):
    account = exporting(*QUICK, "export.tokenizer=beside")
    file, model = exporting.folder / "artifact.zlib", exporting.folder / TOKENIZER_FILE
    assert account["tokenizer_bytes"] == 0
    assert model.read_bytes() == (trained.folder / TOKENIZER_FILE).read_bytes()
    assert load_model(None, str(file)).own_tokenizer() is not None
    model.write_bytes(model.read_bytes() + b"\0")  # another file of that name is not the tokenizer
    assert load_model(None, str(file)).own_tokenizer() is None


def test_a_tokenizer_published_with_shards_goes_beside(exporting, trained, monkeypatch):
    monkeypatch.setattr("jepa_lm.commands.export.find_class", lambda *_: Published)
    assert exporting(*QUICK)["tokenizer"] == "beside"


class Published(ShardCorpus):
    """Stands for the challenge's corpus."""

    def shards(self, cache_dir, most_train=None):
        raise NotImplementedError


def test_bytes_need_no_file(tmp_path):
    for size in (256, 260):
        tokenizer = ByteTokenizer(vocab_size=size)
        assert serialized(tokenizer) is None
        found = own_tokenizer(tokenizer.fingerprint, size, None, tmp_path / "x")
        assert found.fingerprint == tokenizer.fingerprint


def test_a_wrong_place_is_refused(exporting):
    with pytest.raises(UserError, match=r"export\.tokenizer=outside: one of inside, beside, none"):
        exporting(*QUICK, "export.tokenizer=outside")


def test_another_tokenizer_inside_is_refused(exported, tmp_path):
    tensors, meta = unpack(exported.file)
    tensors[TOKENIZER] = tensors[TOKENIZER].flip(0)
    with pytest.raises(UserError, match="its tokenizer is not the one that the model was trained"):
        load_artifact(pack(tmp_path, tensors, meta))


@pytest.mark.parametrize("harm", ["garbage", "truncated", "empty", "other size"])
def test_a_damaged_tokenizer_is_one_line(exported, tmp_path, compose, harm):
    """It has the right fingerprint: whoever forges one file forges both."""
    tensors, meta = unpack(exported.file)
    model = bytes(tensors[TOKENIZER].numpy().data)
    harmed = {"garbage": b"\x0a\xff\xff\xff\x7f" * 99, "truncated": model[:-7], "empty": b""}
    model, size = harmed.get(harm, model), 300 + (harm == "other size")
    with pytest.raises(UserError) as caught:
        checked_tokenizer(model, size, "artifact.br")
    assert "\n" not in str(caught.value)
    if harm == "garbage":
        tensors[TOKENIZER] = tensors[TOKENIZER].new_tensor(list(model))
        meta["tokenizer"] = hashlib.sha256(model).hexdigest()
        file, text = pack(tmp_path, tensors, meta), tmp_path / "text.txt"
        text.write_text("Some words.")
        with pytest.raises(UserError, match="not a SentencePiece model, or is damaged"):
            evaluate(compose("eval", f"artifact_path={file}", f"data.path={text}"))


def test_a_tokenizer_that_crashes_its_reader_is_refused(monkeypatch):
    monkeypatch.setattr(sentencepiece_check, "__name__", "tests.artifact.crashing")
    with pytest.raises(UserError, match=r"its tokenizer is damaged \(reading it failed\)"):
        checked_tokenizer(b"x", 300, "artifact.br")


def test_a_huge_tokenizer_is_not_read(monkeypatch):
    monkeypatch.setattr(sentencepiece_check, "MOST_BYTES", 10)
    with pytest.raises(UserError, match="a tokenizer of 11 bytes; at most 10"):
        checked_tokenizer(b"x" * 11, 300, "artifact.br")
