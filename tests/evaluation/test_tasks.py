"""Tasks of rows: greedy decoding against one row and one token at a time, judged answers, linear probes."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from jepa_lm.data.rows import GeneratedRows, RowWindows
from jepa_lm.data.split import Split
from jepa_lm.data.symbols import Symbols
from jepa_lm.data.synthetic.hierarchy import RandomHierarchy
from jepa_lm.data.synthetic.path_star import PathStar
from jepa_lm.data.synthetic.walks import GraphWalks
from jepa_lm.evaluation.bpb import BPBMeter, window_scores
from jepa_lm.evaluation.decoding import greedy_answers
from jepa_lm.evaluation.linear_probe import RIDGE
from jepa_lm.evaluation.sampling import draws
from jepa_lm.evaluation.tasks import Tasks
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.metrics import METRICS, MetricName
from tests.conftest import MAMBA2, SMALL, SMALL_MAMBA2

STAR = PathStar(degree=2, path_length=3, nodes=8)


def split_of(generator, tmp_path, **more) -> dict[str, Split]:
    """Return the splits of a generator's rows, decoded and scored seven at a time."""
    settings = {"train_rows": 60, "val_rows": 40, "seed": 0} | more
    corpus = GeneratedRows(generator=generator, **settings)
    corpus.shards(tmp_path)
    symbols, T = Symbols(vocab_size=generator.vocab_size), generator.length
    return {
        name: Split(None, symbols, T, 7 * T, None, None, rows)
        for name, rows in corpus.opened().items()
    }


# ---- decoding


@pytest.mark.parametrize("words", [SMALL, SMALL_MAMBA2], ids=["transformer", "mamba2"])
def test_decoding_many_rows_is_decoding_each_alone_token_by_token(compose, words, monkeypatch):
    assert MAMBA2[0] not in SMALL
    torch.manual_seed(0)
    model = build("model", resolve(compose("train", *words))["model"]).eval()
    for parameter in model.parameters():  # so that no token follows from the last one alone
        parameter.data += 0.3 * torch.randn_like(parameter) * (parameter.ndim > 1)
    rows = torch.randint(0, 400, (6, 15), generator=torch.Generator().manual_seed(1))
    starts = np.array([4, 9, 1, 4, 12, 14])
    alone = [
        [int(x) for x in islice(draws(model, r[None, :s], temperature=0, seed=0, context=99), 5)]
        for r, s in zip(rows, starts.tolist(), strict=True)
    ]
    assert len({tuple(found) for found in alone}) > 3
    end = alone[0][2]  # the third token of the first row ends it
    expected = []
    for found, start in zip(alone, starts.tolist(), strict=True):
        found = found[: 15 - start]
        found = found[: found.index(end) + 1] if end in found else found
        expected.append(found + [end] * (5 - len(found)))
    shown = greedy_answers(model, rows, starts, length=5, end=end)
    assert shown.tolist() == expected
    hidden = rows.clone()
    for row, start in enumerate(starts.tolist()):
        hidden[row, start:] = 399  # what the data answer is not shown to the model
    assert torch.equal(greedy_answers(model, hidden, starts, length=5, end=end), shown)
    whole = greedy_answers(model, rows[:4], starts[:4], length=5, end=None)
    assert whole.tolist() == alone[:4]
    passes, tail = [], model.tail
    monkeypatch.setattr(
        model, "tail", lambda ids, count: passes.append(len(ids)) or tail(ids, count)
    )
    for right, most in ((5, 1), (3, 3), (0, 5)):  # what the model would write, in part or whole
        for row, (start, found) in enumerate(zip(starts.tolist(), alone, strict=True)):
            hidden[row, start : start + right] = torch.tensor(found[:right])[: 15 - start]
            hidden[row, start + right :] = 399
        passes.clear()
        assert torch.equal(greedy_answers(model, hidden, starts, length=5, end=end), shown)
        assert len(passes) <= most


# ---- a model that knows the rows


class Knows(torch.nn.Module):
    """Writes the next token of the rows that it was given, except for `wrong` tokens at some places."""

    def __init__(self, rows: np.ndarray, vocab: int, features: torch.Tensor | None = None) -> None:
        super().__init__()
        self.embedding = SimpleNamespace(table=SimpleNamespace(weight=torch.zeros(1)))
        self.vocab, self.features = vocab, features
        self.next = {
            tuple(row[:t].tolist()): int(row[t]) for row in rows for t in range(1, len(row))
        }
        self.places = {tuple(row[:-1].tolist()): i for i, row in enumerate(rows)}

    def tail(self, ids, count):
        T = ids.shape[1]
        found = [
            [self.next.get(tuple(row[: t + 1].tolist()), 0) for t in range(T - count, T)]
            for row in ids
        ]
        return torch.nn.functional.one_hot(torch.tensor(found), self.vocab).float()

    def logits(self, hidden):
        return hidden

    def forward(self, inputs):
        return self.tail(inputs, inputs.shape[1]), None

    def embed(self, inputs):
        return inputs

    def encode(self, inputs):
        return SimpleNamespace(
            final=self.features[[self.places[tuple(row.tolist())] for row in inputs]]
        )


def test_solved_rows_and_hits_are_counted_once_on_any_number_of_processes(tmp_path):
    val = split_of(STAR, tmp_path, decode_rows=30)["val"]
    told = val.examples.tokens.copy()
    told[::3, STAR.branch] = told[::3, STAR.branch + 1]  # of every third row, the branch is wrong
    model, tasks = Knows(told, STAR.vocab_size), Tasks(val, None)
    assert tasks.names == ("solved", "branch_accuracy", "branch_margin")
    one = tasks.counts(model)
    # The logits are 1 for what the model knows: of a wrong branch, 0 for all first nodes.
    assert one.tolist() == [20, 30, 20, 30, 20, 30]
    assert torch.equal(tasks.counts(model, 0, 2) + tasks.counts(model, 1, 2), one)
    assert tasks.counts(model, 1, 2)[1] == 14  # two batches of seven
    meter = BPBMeter(hits=tasks.answers)
    windows = RowWindows(val.examples, 7)
    for i in range(len(windows)):
        batch = windows[i]
        nats, hits = window_scores(model, batch["inputs"], batch["targets"], hits=True)
        meter.update(nats, torch.zeros_like(nats), batch["answers"], hits)
    score = tasks.score([*meter.sums.tolist(), *one.tolist()])
    # Once a row leaves the one it knows, the model writes 0: two of three answers are wrong.
    missed = sum(int(x != 0) for row in val.examples.tokens[::3] for x in row[STAR.branch + 1 : -1])
    assert score.others["solved"] == pytest.approx(2 / 3)
    assert score.others["answer_accuracy"] == pytest.approx(1 - (14 + missed) / (40 * 3))
    assert score.as_dict()["solved"] == score.of("val/solved") == score.others["solved"]


def test_a_margin_is_that_of_the_planned_token_over_the_likeliest_other(tmp_path):
    star = PathStar(degree=4, path_length=3, nodes=16)
    val = split_of(star, tmp_path, decode_rows=30)["val"]
    rows = val.examples.tokens[:30].astype(int)
    scores = torch.randn(30, star.vocab_size, generator=torch.Generator().manual_seed(0))
    model, seen = (
        Knows(rows, star.vocab_size),
        {tuple(r[: star.branch]): i for i, r in enumerate(rows)},
    )
    plain = model.tail

    def tail(ids, count):
        asked = [seen.get(tuple(row.tolist())) for row in ids]
        return plain(ids, count) if None in asked or count > 1 else scores[asked][:, None]

    model.tail = tail
    counted = Tasks(val, None).counts(model)[-2:].tolist()
    want = 0.0
    for z, row in zip(scores.tolist(), rows.tolist(), strict=True):
        edges = [row[i : i + 2] for i in range(0, 3 * star.edges, 3)]
        arms = [end for start, end in edges if start == row[star.branch - 1]]
        arms.remove(row[star.branch])
        want += z[row[star.branch]] - max(z[arm] for arm in arms)
    assert counted == [pytest.approx(want, rel=1e-5), 30]
    warm = Tasks(val, None).counts(model, temperature=2.0)[-2:].tolist()
    assert warm == [pytest.approx(want / 2, rel=1e-5), 30]


def test_any_walk_that_reaches_its_target_solves_a_row(tmp_path):
    walks = GraphWalks(nodes=12, seed=1)
    val = split_of(walks, tmp_path)["val"]
    tasks = Tasks(val, None)
    assert tasks.counts(Knows(val.examples.tokens, walks.vocab_size)).tolist() == [40, 40]
    nothing = Knows(val.examples.tokens[:0], walks.vocab_size)
    assert tasks.counts(nothing)[0] == 0


def test_what_rows_ask_is_known_before_they_are_drawn(tmp_path):
    for generator, shares in (
        (STAR, ("answer_accuracy", "solved", "branch_accuracy")),
        (RandomHierarchy(levels=3), ("probe_root", "probe_level_1", "probe_level_2")),
    ):
        corpus = GeneratedRows(generator=generator, train_rows=9, val_rows=5, seed=0)
        assert corpus.shares == shares
        tasks = Tasks(*reversed(split_of(generator, tmp_path).values()))
        margin = ("branch_margin",) if generator is STAR else ()
        assert tasks.names == (*(n for n in shares if n != "answer_accuracy"), *margin)
    none = GeneratedRows(
        generator=STAR, train_rows=9, val_rows=5, seed=0, decode_rows=0, probe_rows=0
    )
    assert none.shares == ("answer_accuracy",)
    assert Tasks(split_of(STAR, tmp_path, decode_rows=0)["val"], None).names == ()
    deepest = RandomHierarchy(symbols=2, rules=1, levels=14).label_names
    assert {f"val/probe_{name}" for name in deepest} <= METRICS.keys()
    assert set(METRICS) == set(get_args(MetricName))


# ---- probes


def test_a_probe_is_a_ridge_regression_on_training_rows(tmp_path):
    generator = RandomHierarchy(symbols=4, rules=2, levels=3)
    found = split_of(
        generator, tmp_path, probe_rows=50
    )  # of 60; the ten others have no labels here
    fitted, scored = (found[name].examples.labels["root"] for name in ("train", "val"))
    (place,) = fitted.places
    classes = np.concatenate([fitted.values[:, 0], np.zeros(10, int), scored.values[:, 0]])
    features = torch.randn(100, 7, 9, generator=torch.Generator().manual_seed(0))
    features[:, place, :4] += 2 * torch.nn.functional.one_hot(torch.from_numpy(classes), 4)
    rows = np.concatenate([found[name].examples.tokens for name in ("train", "val")])
    model, tasks = Knows(rows, 4, features), Tasks(found["val"], found["train"])
    counts = tasks.counts(model)
    H = np.concatenate([features[:, place].double().numpy(), np.ones((100, 1))], 1)
    gram = H[:50].T @ H[:50]
    gram += RIDGE * np.diag(gram).mean() * np.eye(len(gram))
    W = np.linalg.solve(gram, H[:50].T @ np.eye(4)[classes[:50]])
    right = ((H[60:] @ W).argmax(1) == classes[60:]).sum()
    assert counts[:2].tolist() == [right, 40]
    assert 20 < right < 40
    assert counts[1::2].tolist() == [40, 80, 160]  # one map serves all nodes of a level
    assert torch.equal(tasks.counts(model, 0, 2) + tasks.counts(model, 1, 2), counts)
