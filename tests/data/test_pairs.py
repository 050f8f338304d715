"""Pairs as rows: which targets count, what is cut and told, damaged files, and which answers are right."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch

from jepa_lm.data.pair_files import PairFiles
from jepa_lm.data.pairs import BOS, EOS, PAD, TURN, PairRows, Turn, fitting, row_of
from jepa_lm.data.tokenizers import ByteTokenizer
from jepa_lm.model.cross_entropy import token_nll
from jepa_lm.run import train
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.errors import UserError
from tests.data.test_rows import TINY
from tests.runs import metrics, same, state, summary

REGEX = (
    "data=regex",
    "data.corpus.source.train_pairs=40",
    "data.corpus.source.val_pairs=12",
    "data.seq_len=96",
    "data.batch_tokens=768",
    "data.val_batch_tokens=768",
    "data.corpus.decode_rows=4",
)


def ids(text: str) -> list[int]:
    return ByteTokenizer(vocab_size=260).encode(text).tolist()


def pair(*texts: str) -> list[Turn]:
    """Return a conversation in which every second message is an answer."""
    return [Turn(i % 2 == 1, text.encode()) for i, text in enumerate(texts)]


def written(path, *rows) -> str:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return str(path)


def source(path: str, **more) -> PairFiles:
    fields = {"question": "q", "answer": "a"}
    settings = {"val_path": None, "val_fraction": 0.25, "system": False, "train_pairs": None}
    return PairFiles(path=path, **{**settings, **fields, **more})


def rows_of(found: PairFiles, **more) -> PairRows:
    settings = {"length": 12, "too_long": "refuse", "loss_on": "answers", "same": None}
    return PairRows(source=found, **{**settings, "decode_rows": 4, **more})


# ---- rows


def test_a_row_by_hand():
    row = row_of(pair("ab", "c"), 8)
    assert row.tokens.tolist() == [BOS, *ids("ab"), TURN, *ids("c"), EOS, PAD, PAD, PAD]
    targets = row.tokens[1:]
    assert targets[row.scored].tolist() == [*ids("c"), EOS]  # the mark that ends it is learned, too
    assert targets[row.whole].tolist() == [*ids("ab"), TURN, *ids("c"), EOS]
    start, stop, begin, end = row.views
    assert row.tokens[start:stop].tolist() == [BOS, *ids("ab")]
    assert row.tokens[begin:end].tolist() == [TURN, *ids("c")]


def test_every_answer_of_a_conversation_counts_and_the_first_one_is_a_view():
    row = row_of(pair("ab", "c", "d", "ef"), 12)
    targets = row.tokens[1:]
    assert targets[row.scored].tolist() == [*ids("c"), TURN, *ids("ef"), EOS]
    assert row.tokens[row.views[2] : row.views[3]].tolist() == [TURN, *ids("c")]


def test_a_pair_that_just_fits_is_whole_and_a_longer_one_loses_the_end_of_its_question():
    assert fitting(pair("abc", "de"), 7) == pair("abc", "de")
    assert row_of(pair("abc", "de"), 7).tokens[-1] == EOS
    assert fitting(pair("abcd", "de"), 7) == pair("abc", "de")
    assert fitting(pair("abé", "de"), 6) == pair("ab", "de")  # no half of a character
    assert fitting(pair("a", "bcdefg"), 7) is None


def test_what_is_too_long_is_counted_and_told_again_from_the_cache(tmp_path):
    long = {"q": "x" * 20, "a": "yes"}
    hopeless = {"q": "x", "a": "y" * 20}
    path = written(
        tmp_path / "pairs.jsonl", *[{"q": str(i), "a": "no"} for i in range(8)], long, hopeless
    )
    held_out = written(tmp_path / "val.jsonl", {"q": "3", "a": "no"}, {"q": "other", "a": "no"})
    found = source(path, val_path=held_out)
    with pytest.raises(
        UserError, match=r"^data\.corpus\.too_long=refuse: 2 of the 10 training pairs are longer"
    ):
        rows_of(found).shards(tmp_path)
    for way, said, count in (
        ("cut", "1 questions cut, 1 pairs", 9),
        ("leave_out", "0 questions cut, 2", 8),
    ):
        for _ in range(2):  # made, and read from the cache
            rows = rows_of(found, too_long=way)
            rows.shards(tmp_path)
            assert said in rows.remarks[0]
            assert (
                rows.remarks[1]
                == "data: 1 of the 2 validation questions are also in the training pairs"
            )
            assert len(rows.opened()["train"].tokens) == count


def test_weights_follow_the_loss_and_scores_the_answers(tmp_path):
    found = source(
        written(tmp_path / "pairs.jsonl", *[{"q": "ab", "a": "c" * i} for i in (1, 2, 3, 4)])
    )
    answers, whole = (rows_of(found, loss_on=on) for on in ("answers", "conversation"))
    batches = []
    for rows in (answers, whole):
        rows.shards(tmp_path)
        batches.append(rows.opened()["train"].fields)
    assert np.array_equal(batches[0]["answers"], batches[1]["answers"])
    assert np.array_equal(batches[0]["weights"] > 0, batches[0]["answers"])
    assert (batches[1]["weights"] > 0).sum(1).tolist() == [5, 6, 7]  # a b TURN c.. EOS
    for fields in batches:
        assert fields["weights"].mean() == pytest.approx(1)
        assert np.array_equal(fields["whole"], batches[1]["weights"] > 0)


# ---- files


def test_messages_and_fields_give_the_same_pairs(tmp_path):
    roles = ("system", "user", "assistant")
    said = [("be brief", "1+1", "2"), ("be brief", "über", "ü"), ("be brief", "x", "y")]
    messages = [
        {"messages": [{"role": r, "content": c} for r, c in zip(roles, texts, strict=True)]}
        for texts in said
    ]
    one = source(written(tmp_path / "a.jsonl", *messages), question=None, answer=None)
    fields = [{"q": question, "a": answer, "other": 3} for _, question, answer in said]
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress("\n\n".join(map(json.dumps, fields)).encode()))
    other = source(str(packed))
    for split, count in (("train", 2), ("val", 1)):
        assert list(one.conversations(split)) == list(other.conversations(split))
        assert len(list(one.conversations(split))) == count
    kept = source(str(tmp_path / "a.jsonl"), question=None, answer=None, system=True)
    assert next(kept.conversations("val"))[0] == Turn(False, b"be brief")
    assert len(list(source(str(packed), train_pairs=1).conversations("train"))) == 1
    assert one.fingerprint() != kept.fingerprint()


DAMAGED = (
    ("{", "line 2 is not a JSON object"),
    ("[1]", "line 2 is a list, expected a JSON object"),
    ("[" * 5000, "line 2 is not a JSON object"),
    ('{"q": "x"}', "line 2 has no text 'a'; its fields of text are: q"),
    ('{"q": "x", "a": 3}', "line 2 has no text 'a'"),
    ('{"q": "x", "a": ""}', "line 2 has an empty text"),
    ('{"q": "x", "a": "\\ud800"}', "line 2 holds half a surrogate pair"),
)
NO_MESSAGES = (
    (
        '{"prompt": "x", "reply": "y"}',
        "its fields of text are prompt, reply; name two with data.corpus",
    ),
    ('{"messages": {}}', 'no list "messages"; nor fields of text'),
    (
        '{"messages": [{"role": "tool", "content": "x"}]}',
        "a message of the role 'tool'; expected user",
    ),
    ('{"messages": [3]}', "a message of the role 'None'"),
    ('{"messages": [{"role": "assistant", "content": "x"}]}', "does not begin with a question"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "does not begin with a question"),
    ('{"messages": [{"role": "user"}]}', "has no text 'content'"),
)


@pytest.mark.parametrize(("line", "message"), DAMAGED)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = written(tmp_path / "pairs.jsonl", {"q": "x", "a": "y"}, line)
    with pytest.raises(UserError, match=f"^data.path={path}: {message}"):
        list(source(path).conversations("train"))


@pytest.mark.parametrize(("line", "message"), NO_MESSAGES)
def test_messages_that_are_none_are_named(tmp_path, line, message):
    path = written(tmp_path / "pairs.jsonl", line)
    with pytest.raises(UserError, match=f"^data.path={path}: line 1 .*{message}"):
        list(source(path, question=None, answer=None).conversations("train"))


# ---- answers


def test_an_answer_is_judged_by_its_bytes_up_to_the_mark(tmp_path):
    judge = rows_of(source(written(tmp_path / "p.jsonl", {"q": "x", "a": "y"})), same="regex").judge
    wanted = ["a|b", "a|b", "a|b", "ab", "ab", "a b", "a b"]
    rows = np.stack([row_of(pair("q", text), 12).tokens for text in wanted])
    given = [
        [*ids("a|b"), EOS, EOS],
        [*ids("b|a"), EOS, EOS],
        [*ids("(b)|a")],
    ]  # the last has no end
    given += [[*ids("ab"), PAD, EOS, EOS], [*ids("ab("), EOS, EOS]]
    given += [ids(" a\tb"), ids("ab")]
    found = judge(rows, np.full(7, 3), np.array([row + [EOS] * (5 - len(row)) for row in given]))
    assert found["exact_match"].tolist() == [True, *[False] * 6]
    assert found["same_words"].tolist() == [True, *[False] * 4, True, False]
    assert found["same_regex"].tolist() == [True, True, *[False] * 5]


# ---- runs


def test_a_run_on_pairs(compose, tmp_path):
    words = (*REGEX, *TINY, "trainer.log_every_n_steps=1", "trainer.max_steps=4", "seed=4")
    pairs = ("objective=llm_jepa_pairs", "jepa.schedule.dropped=0.5")
    kept = ("checkpoint.every_n_steps=2", "checkpoint.keep=2")
    train(compose("train", *words, *pairs, *kept, run_dir=tmp_path / "pairs"))
    step = f"ckpt_path={tmp_path / 'pairs' / 'checkpoints' / 'step-2.ckpt'}"
    train(compose("train", *words, *pairs, step, run_dir=tmp_path / "half"))
    assert same(
        state(tmp_path / "pairs"), state(tmp_path / "half")
    )  # resumed, with its dropped steps
    assert metrics(tmp_path / "pairs", "jepa/weight") == [0, 4, 4, 0]
    assert all(0 < loss < 2 for loss in metrics(tmp_path / "pairs", "jepa/prediction"))
    val = summary(tmp_path / "pairs")["val"]
    assert val["bpb"] is not None  # bits per byte of the answers
    assert val["bytes"] == val["tokens"] - 12  # the mark after each answer is no byte
    assert 0 <= val["exact_match"] <= min(val["same_words"], val["same_regex"]) <= 1
    for name, more in (("none", "objective=none"), ("zero", "jepa.weight=0")):
        chosen = (*words, *pairs[:1], more) if name == "zero" else (*words, more)
        train(compose("train", *chosen, "data.corpus.decode_rows=0", run_dir=tmp_path / name))
    assert same(state(tmp_path / "zero", "model."), state(tmp_path / "none", "model."))


@pytest.mark.slow
def test_resuming_on_pairs_from_a_file_is_bit_identical(compose, tmp_path):
    pairs = [{"q": f"{i} and {i % 7}?", "a": f"{i + i % 7}"} for i in range(40)]
    words = (
        *("data=pairs", f"data.path={written(tmp_path / 'p.jsonl', *pairs)}", "data.seq_len=24"),
        *("data.corpus.source.question=q", "data.corpus.source.answer=a", "data.batch_tokens=192"),
        *("data.corpus.decode_rows=4", "objective=llm_jepa_pairs", *TINY),
    )
    train(compose("train", *words, run_dir=tmp_path / "whole"))
    step = f"ckpt_path={tmp_path / 'whole' / 'checkpoints' / 'step-3.ckpt'}"
    train(compose("train", *words, step, run_dir=tmp_path / "half"))
    assert same(state(tmp_path / "whole"), state(tmp_path / "half"))
    assert summary(tmp_path / "whole")["val"] == summary(tmp_path / "half")["val"]


def test_the_loss_is_the_mean_over_answers(compose):
    from jepa_lm.training.module import LanguageModelTask

    config = resolve(compose("train", *REGEX, *TINY, "data.corpus.source.train_pairs=8"))
    task, data = LanguageModelTask(config), build("data", config["data"])
    data.setup()
    batch = data.order_of(0, 1, 1).batch(None, 0)  # all eight rows
    loss, _, _ = task._losses(batch, None)
    nll = token_nll(task.model(batch["inputs"])[0], batch["targets"])
    torch.testing.assert_close(loss, nll[batch["answers"]].mean())
    assert (batch["targets"][batch["answers"]] == EOS).sum() == 8


MISTAKES = (
    (("data=pairs",), "^data.path is not set; data=pairs reads a .jsonl"),
    (("data=pairs", "data.path=nowhere.jsonl"), "^data.path=nowhere.jsonl: no such file"),
    ((*REGEX, "data.path=x.jsonl"), "^data.path=x.jsonl: generated rows read no files"),
    ((*REGEX, "data.corpus.length=50"), "^data.seq_len=96: must equal data.corpus.length=50"),
    ((*REGEX, "data/tokenizer=bytes256"), "use data/tokenizer=byte260"),
    ((*REGEX, "data.train_tokens=9"), "rows are counted; use data.corpus.source.train_pairs"),
    ((*REGEX, "data.corpus.source.longest=20"), "the grammar has hardly more than"),
    (("data=hmm", "objective=llm_jepa_pairs"), "^jepa.context.view: these data have no pairs"),
)


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes(compose, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        train(compose("train", *words, *TINY))
    assert not (tmp_path / "run" / "checkpoints").exists()
