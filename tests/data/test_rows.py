"""Rows that are examples: what a batch holds, that no window crosses a row, and scores without bytes."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

from jepa_lm.data.rows import GeneratedRows, RowOrder, RowWindows
from jepa_lm.data.split import Split
from jepa_lm.data.symbols import Symbols
from jepa_lm.data.synthetic.markov import HiddenMarkov
from jepa_lm.data.synthetic.path_star import PathStar
from jepa_lm.data.synthetic.walks import GraphWalks
from jepa_lm.model.cross_entropy import token_nll
from jepa_lm.run import evaluate, export, train
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.errors import UserError
from tests.runs import metrics, rows, same, state, summary

STAR = (
    "data=path_star",
    "data.corpus.generator.degree=2",
    "data.corpus.generator.path_length=3",
    "data.corpus.generator.nodes=8",
    "data.tokenizer.vocab_size=13",
    "data.seq_len=18",
    "data.corpus.train_rows=40",
    "data.corpus.val_rows=30",
    "data.batch_tokens=144",
)
HMM = ("data=hmm", "data.corpus.train_rows=24", "data.corpus.val_rows=20", "data.batch_tokens=512")
TINY = (
    "model.dim=32",
    "model.backbone.layers=2",
    "model.backbone.heads=2",
    "model.backbone.kv_heads=2",
    "trainer.precision=32-true",
    "trainer=cpu",
    "optimizer.groups.matrices.ns_dtype=float32",
    "trainer.max_steps=6",
    "trainer.log_every_n_steps=2",
    "checkpoint.every_n_steps=3",
    "sample=false",
)


def hmm_rows(tmp_path, **more) -> GeneratedRows:
    settings = {"train_rows": 10, "val_rows": 7, "seed": 0} | more
    corpus = GeneratedRows(generator=HiddenMarkov(length=16), **settings)
    corpus.shards(tmp_path)
    return corpus


# ---- the rows


def test_training_rows_are_fixed_and_validation_rows_are_others(tmp_path):
    found = hmm_rows(tmp_path).opened()
    assert found["train"].tokens.shape == (10, 17)
    assert found["val"].tokens.shape == (7, 17)
    drawn = HiddenMarkov(length=16).sample(10, (0, 0))
    assert np.array_equal(found["train"].tokens, drawn.tokens)
    assert np.array_equal(found["train"].fields["latents"], drawn.latents)
    assert not any((found["val"].tokens == row).all(1).any() for row in drawn.tokens)


def test_the_floor_is_that_of_the_validation_rows(tmp_path):
    opened = hmm_rows(tmp_path).opened()["val"]
    generator = HiddenMarkov(length=16)
    laws = opened.fields["latents"] @ generator.emission  # [R, T, V]
    chosen = np.take_along_axis(laws, opened.tokens[:, 1:, None].astype(int), 2)
    assert opened.floor == pytest.approx(float(-np.log(chosen).mean()), abs=1e-5)


def test_validation_asks_what_training_never_does_and_its_floor_is_that_of_answers(tmp_path):
    walks = GraphWalks(nodes=8, density=0.4)
    corpus = GeneratedRows(generator=walks, train_rows=40, val_rows=30, seed=0)
    corpus.shards(tmp_path)
    train_rows, val = (corpus.opened()[split] for split in ("train", "val"))
    asked = [{tuple(row) for row in rows.tokens[:, :2].tolist()} for rows in (train_rows, val)]
    assert asked[0].isdisjoint(asked[1])
    drawn = walks.sample(30, (0, 1), held_out=True)
    assert np.array_equal(val.tokens, drawn.tokens)
    assert val.floor == pytest.approx(drawn.nats.sum() / drawn.answer.sum())


def test_the_floor_is_that_of_the_rows_that_are_scored(tmp_path):
    walks = GraphWalks(nodes=8, density=0.4)
    corpus = GeneratedRows(generator=walks, train_rows=40, val_rows=10, seed=0)
    corpus.shards(tmp_path)
    val, drawn = corpus.opened()["val"], walks.sample(10, (0, 1), held_out=True)
    split = Split(None, None, walks.length, 3 * walks.length, None, None, val)

    def floor(*batches: int) -> float:
        chosen = [row for b in batches for row in range(3 * b, min(3 * b + 3, 10))]
        return pytest.approx(drawn.nats[chosen].sum() / drawn.answer[chosen].sum())

    assert val.first(3).floor == split.windows(3 * walks.length)._rows.floor == floor(0)
    assert split.floor_of_batches(1.0, 1) == split.floor_of_batches(None, 2) == floor(0, 1, 2, 3)
    assert split.floor_of_batches(2, 1) == floor(0, 1)
    assert split.floor_of_batches(1, 2) == floor(0, 1)  # each rank scores its first
    assert split.floor_of_batches(0.5, 2) == floor(0, 1)
    assert split.floor_of_batches(0.25, 1) == floor(0) != floor(0, 1, 2, 3)
    assert split.floor_of_batches(0, 1) is None


def test_every_pass_has_every_row_once_for_any_number_of_ranks(tmp_path):
    opened = hmm_rows(tmp_path, train_rows=12).opened()["train"]
    known = [row.tobytes() for row in opened.tokens.astype(np.int64)]

    def drawn(ranks: int, count: int, batches: int, seed: int = 0) -> list[int]:
        orders = [
            RowOrder(opened, count=count, rank=r, world_size=ranks, seed=seed) for r in range(ranks)
        ]
        found = []
        for i in range(batches):
            for order in orders:
                batch = order.batch(None, i)
                whole = torch.cat((batch["inputs"], batch["targets"][:, -1:]), 1).numpy()
                found += [known.index(row.tobytes()) for row in whole]
        return found

    one = drawn(1, 4, 6)
    assert sorted(one[:12]) == sorted(one[12:]) == list(range(12))
    assert one[:12] != one[12:]
    assert drawn(2, 2, 6) == one
    assert drawn(1, 4, 6, seed=1) != one


def test_windows_are_the_rows(tmp_path):
    opened = hmm_rows(tmp_path).opened()["val"]
    windows = RowWindows(opened, 3)
    batches = [windows[i] for i in range(len(windows))]
    assert [len(b["inputs"]) for b in batches] == [3, 3, 1]
    assert torch.equal(
        torch.cat([b["targets"] for b in batches]),
        torch.from_numpy(opened.tokens[:, 1:].astype(int)),
    )
    with pytest.raises(IndexError):
        windows[3]


def test_weights_average_one_over_the_training_rows(tmp_path):
    corpus = GeneratedRows(
        generator=PathStar(degree=2, path_length=3, nodes=8), train_rows=9, val_rows=4, seed=0
    )
    corpus.shards(tmp_path)
    train_rows = corpus.opened()["train"]
    weights, answers = train_rows.fields["weights"], train_rows.fields["answers"]
    assert weights.mean() == pytest.approx(1)
    assert np.array_equal(weights > 0, answers)


def test_other_settings_are_other_rows_and_a_damaged_file_is_made_again(tmp_path):
    first = hmm_rows(tmp_path).shards(tmp_path).train[0]
    assert hmm_rows(tmp_path).shards(tmp_path).train[0] == first
    sticky = GeneratedRows(
        generator=HiddenMarkov(length=16, sticky=0.8500001), train_rows=10, val_rows=7, seed=0
    )
    assert sticky.shards(tmp_path).train[0] != first
    before = first.read_bytes()
    (first.parent / "train_latents.npy").write_bytes(b"damaged")
    hmm_rows(tmp_path).opened()
    assert first.read_bytes() == before
    shutil.rmtree(first.parent)
    assert hmm_rows(tmp_path).shards(tmp_path).train[0].read_bytes() == before


def test_symbols_are_read_and_written_by_name():
    symbols = Symbols(vocab_size=3)
    symbols.named(["A", "B", "<end>"])
    assert symbols.encode("B <end> A").tolist() == [1, 2, 0]
    assert symbols.decode([1, 2, 0]).decode().split() == ["B", "<end>", "A"]
    with pytest.raises(UserError, match="'C' is no symbol of this data, which are A B <end>"):
        symbols.encode("A C")


# ---- runs


def test_a_run_scores_in_nats_and_above_the_floor(compose, tmp_path):
    value = train(compose("train", *HMM, *TINY))
    val = summary(tmp_path / "run")["val"]
    assert val["bpb"] is None
    assert val["bytes"] == 0
    assert val["tokens"] == 20 * 64
    assert value == val["nll"]
    names = set().union(*rows(tmp_path / "run"))
    assert not {"val/bpb", "train/bpb"} & names
    above = metrics(tmp_path / "run", "val/above_floor")
    assert above[-1] == pytest.approx(val["nll"] - val["floor"], abs=1e-6)


FEW = ("data.corpus.train_rows=24", "data.corpus.val_rows=20")
WALKS = (
    "data=walks",
    "data.corpus.generator.nodes=8",
    "data.corpus.generator.density=0.4",
    "data.tokenizer.vocab_size=24",
    "data.seq_len=6",
    *FEW,
    "data.batch_tokens=48",
)
KINDS = {
    "hmm": HMM,
    "star": STAR,
    "walks": WALKS,
    "hierarchy": ("data=hierarchy", *FEW, "data.corpus.probe_rows=16", "data.batch_tokens=120"),
    "mess3": ("data=mess3", *FEW, "data.batch_tokens=512"),
    "rrxor": ("data=rrxor", *FEW, "data.batch_tokens=512"),
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(words, id=name, marks=() if name in ("hmm", "star") else pytest.mark.slow)
        for name, words in KINDS.items()
    ],
)
def test_resuming_is_bit_identical(compose, tmp_path, kind):
    train(compose("train", *kind, *TINY, run_dir=tmp_path / "whole"))
    step = f"ckpt_path={tmp_path / 'whole' / 'checkpoints' / 'step-3.ckpt'}"
    train(compose("train", *kind, *TINY, step, run_dir=tmp_path / "half"))
    assert same(state(tmp_path / "whole"), state(tmp_path / "half"))
    assert summary(tmp_path / "whole")["val"] == summary(tmp_path / "half")["val"]


def test_only_answers_count_in_training_and_in_the_score(compose, tmp_path):
    from jepa_lm.training.module import LanguageModelTask

    config = resolve(compose("train", *STAR, *TINY))
    task = LanguageModelTask(config)
    data = build("data", config["data"])
    data.setup()
    batch = data.order_of(0, 1, 1).batch(None, 0)
    loss, _, _ = task._losses(batch, None)
    nll = token_nll(task.model(batch["inputs"])[0], batch["targets"])
    torch.testing.assert_close(loss, nll[batch["answers"]].mean())
    train(compose("train", *STAR, *TINY))
    run = tmp_path / "run"
    score = evaluate(compose("eval", f"ckpt_path={run}", run_dir=tmp_path / "eval"))
    assert score == pytest.approx(summary(run)["val"]["nll"], abs=1e-6)
    for name in ("audit", "baselines"):
        with pytest.raises(UserError, match=rf"^eval\.{name}=true: these data are rows"):
            evaluate(compose("eval", f"ckpt_path={run}", f"eval.{name}=true"))
    val, told = summary(run)["val"], json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert "audit" not in told
    assert val["tokens"] == 30 * 3  # three answers in each row
    assert told["floor"] == 0
    for name in ("answer_accuracy", "solved"):
        assert told[name] == val[name] == metrics(run, f"val/{name}")[-1]
    assert val["answer_accuracy"] > 0
    margin = told["branch_margin"]
    assert margin == pytest.approx(val["branch_margin"], abs=1e-5)
    assert margin == pytest.approx(metrics(run, "val/branch_margin")[-1], abs=1e-5)
    warm = tmp_path / "warm"
    evaluate(compose("eval", f"ckpt_path={run}", "eval.temperature=2", run_dir=warm))
    told = json.loads((warm / "eval.json").read_text())
    assert told["branch_margin"] == pytest.approx(margin / 2, abs=1e-5)
    assert told["answer_accuracy"] == val["answer_accuracy"]


def test_a_law_from_the_data_is_a_target(compose, tmp_path):
    few = ("data.val_batch_tokens=256", "trainer.limit_val_batches=2")
    train(compose("train", *HMM, *TINY, "objective=oracle_law", *few))
    losses = metrics(tmp_path / "run", "jepa/prediction")
    assert 0 < losses[-1] < 2 * math.log(8)
    data = build("data", resolve(compose("train", *HMM, *TINY))["data"])
    data.setup()
    val = summary(tmp_path / "run")["val"]
    assert val["tokens"] == 8 * 64
    assert val["floor"] == data.rows["val"].first(8).floor != data.rows["val"].floor


def test_weight_zero_of_a_law_is_none_and_its_placebo_is_the_law_of_other_rows(compose, tmp_path):
    words = (*HMM, *TINY)
    train(
        compose("train", *words, "objective=oracle_law", "jepa.weight=0", run_dir=tmp_path / "zero")
    )
    train(compose("train", *words, run_dir=tmp_path / "none"))
    assert same(state(tmp_path / "zero", "model."), state(tmp_path / "none", "model."))
    for name, more in (("law", ()), ("placebo", ("jepa.placebo=true",))):
        train(compose("train", *words, "objective=oracle_law", *more, run_dir=tmp_path / name))
    first = [metrics(tmp_path / name, "train/ce")[0] for name in ("law", "placebo", "none")]
    losses = [metrics(tmp_path / name, "jepa/prediction") for name in ("law", "placebo")]
    assert max(first) - min(first) < 0.1  # the same start and the same rows
    assert losses[0] != losses[1]


@pytest.mark.usefixtures("answers_here")
def test_an_export_needs_no_tokenizer_and_is_told_in_nats(compose, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    train(compose("train", *HMM, *TINY))
    words = (f"ckpt_path={tmp_path / 'run'}", "quantization=int8")
    export(compose("export", *words, run_dir=tmp_path / "export"))
    told = capsys.readouterr().out
    assert "nats per token" in told
    account = json.loads((tmp_path / "export" / "export.json").read_text())
    scores = next(iter(account["round_trip"].values()))
    assert scores["artifact"]["bpb"] is None
    above = f"{scores['artifact']['nll'] - summary(tmp_path / 'run')['val']['floor']:.4f}"
    assert re.search(rf"nats above the law's own score, standard[ │]+{above}", told)
    card = (tmp_path / "export" / "model_card.md").read_text()
    assert f"the artifact is {above} nats above it" in card
    assert "Nats per token of validation rows; lower is better" in card


MISTAKES = (
    (("objective=oracle_law",), "jepa.target.field=latents: these data have no such field"),
    (
        (*HMM, "objective=oracle_law", "jepa.target.dim=5"),
        "jepa.target.dim=5: the latents of these data have width 8; set jepa.target.dim=8",
    ),
    ((*HMM, "data.tokenizer.vocab_size=20"), "set data.tokenizer.vocab_size=16"),
    ((*STAR, "data.seq_len=20"), "rows are examples of 18 tokens; set data.seq_len=18"),
    ((*HMM, "metric=val/solved"), "metric=val/solved: these data have val/nll$"),
    ((*STAR, "metric=val/bpb"), "val/answer_accuracy, val/solved, val/branch_accuracy$"),
    ((*STAR, "metric=val/solved", "data.corpus.decode_rows=0"), "val/nll, val/answer_accuracy$"),
    ((*HMM, "data.batch_tokens=100"), "64 x 1 x 1 = 64, such as 128"),
    ((*HMM, "data.order=stream"), "data.order=stream: rows are shuffled"),
    ((*HMM, "data.train_tokens=100"), "use data.corpus.train_rows"),
    (
        (
            *HMM,
            "data.tokenizer._target_=jepa_lm.data.tokenizers.ByteTokenizer",
            "data.tokenizer.vocab_size=256",
        ),
        "generated rows are no text",
    ),
    ((*HMM, "data.corpus.generator.sticky=1.5"), "sticky"),
    ((*HMM, "data.corpus.train_rows=100000000"), "which is what memory allows"),
)


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes(compose, tmp_path, small_text, words, message):
    text = (
        ()
        if any(w.startswith("data=") for w in words)
        else ("data=text", f"data.path={small_text}")
    )
    with pytest.raises(UserError, match=message):
        train(compose("train", *text, *words, *TINY))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_sliding_windows_would_cross_rows(compose, tmp_path):
    train(compose("train", *HMM, *TINY))
    words = ("eval=sliding", f"ckpt_path={tmp_path / 'run'}")
    with pytest.raises(UserError, match="eval=sliding: these data are rows that are examples"):
        evaluate(compose("eval", *words, run_dir=tmp_path / "eval"))
