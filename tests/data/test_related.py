"""Which rows of a micro-batch are of one document: against a plain count over the tokens themselves."""

import numpy as np
import pytest
import torch

from jepa_lm.data import related
from jepa_lm.data.related import RELATED, WithRelated, related_rows, shifts
from jepa_lm.data.rows import RowOrder
from jepa_lm.data.stream import TokenStream, make_order
from jepa_lm.objective import auxiliary_loss
from jepa_lm.objective.placebo import other_rows
from jepa_lm.training.summary import _placebo
from tests.runs import Watch, fit

BOS, T, ROWS = 1, 8, 6


def text(documents: int, longest: int, seed: int = 0) -> np.ndarray:
    """Documents of random length, each marked by its first token."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, documents)
    return np.concatenate([[BOS, *rng.integers(2, 99, n - 1)] for n in lengths]).astype(np.uint16)


def in_shards(ids: np.ndarray, cuts: list[int], limit: int | None = None) -> TokenStream:
    return TokenStream._over([part for part in np.split(ids, cuts) if len(part)], limit)


def by_counting(stream: TokenStream, places: np.ndarray, bos: int | None) -> torch.Tensor:
    """Give every token the number of its document, or its own, and compare the rows' sets."""
    ids = np.empty(stream.total, dtype=np.int64)
    stream.read(0, ids)
    document = np.arange(len(ids)) if bos is None else np.cumsum(ids == bos)
    read = [{int(document[(p + i) % len(ids)]) for i in range(T + 1)} for p in places]
    return torch.tensor([[bool(a & b) for b in read] for a in read])


def marked(order, bos: int | None = BOS, *, examples: bool = False) -> WithRelated:
    return WithRelated(order, seq_len=T, document_start=bos, examples=examples)


@pytest.mark.parametrize("name", ["stream", "shuffle"])
@pytest.mark.parametrize("bos", [BOS, None])
@pytest.mark.parametrize("longest", [4, 30, 200])
def test_rows_are_related_if_they_share_a_document(name, bos, longest):
    stream = in_shards(text(60, longest), [7, 40, 41, 90], limit=None if longest > 4 else 110)
    order = make_order(name, tokens=ROWS * T, seq_len=T, rank=1, world_size=2, seed=3)
    found = []
    for index in range(60):  # several passes, and rows that go on at the beginning
        batch = marked(order, bos).batch(stream, index)
        plain = order.batch(stream, index)
        assert all(torch.equal(batch[key], plain[key]) for key in plain)
        places = order.places(stream.total, index)
        assert torch.equal(batch[RELATED], by_counting(stream, places, bos))
        found.append(batch[RELATED].float().mean().item())
    assert min(found) < 1


def test_places_are_those_of_the_rows():
    ids = np.arange(500, dtype=np.uint16)
    stream = TokenStream.of(ids)
    for name in ("stream", "shuffle"):
        order = make_order(name, tokens=ROWS * T, seq_len=T, rank=0, world_size=1, seed=3)
        for index in range(25):
            first = order.batch(stream, index)["inputs"][:, 0].tolist()
            assert (order.places(500, index) % 500).tolist() == first


def test_a_text_without_marks_before_a_place_begins_with_its_document():
    stream = in_shards(np.array([5, 6, 7, BOS, 8, 9], dtype=np.uint16), [2, 4])
    for document_start, begins in ((BOS, [0, 0, 0, 3, 3, 3]), (8, [0, 0, 0, 0, 4, 4])):
        order = marked(make_order("stream", tokens=T, seq_len=T, rank=0, world_size=1, seed=0))
        assert [order._begin(stream, at, document_start) for at in range(6)] == begins


def test_rows_that_are_examples_are_related_to_themselves_alone():
    class Twelve:
        tokens = np.zeros((12, T), dtype=np.uint16)

        def batch(self, rows):
            return {"inputs": torch.from_numpy(rows)}

    stream = TokenStream.of(np.zeros(0, dtype=np.uint16))
    order = marked(RowOrder(Twelve(), count=8, rank=0, world_size=1, seed=0), examples=True)
    for index in range(6):  # the second micro-batch of each pass begins the next one
        batch = order.batch(stream, index)
        same = batch["inputs"][:, None] == batch["inputs"]
        assert torch.equal(batch[RELATED], same)
    assert order.share(0) == (8, 12)


def test_a_document_that_no_shift_avoids_is_told_once(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(related, "warn", told.append)
    for ids in (text(200, 9), np.full(900, 5)):  # short documents, then one
        order = make_order("stream", tokens=16 * T, seq_len=T, rank=0, world_size=1, seed=3)
        with_related = marked(order)
        for index in range(3):
            with_related.batch(TokenStream.of(ids.astype(np.uint16)), index)
        assert with_related.own_document == (1.0 if len(set(ids)) == 1 else 0.0)
    assert len(told) == 1
    assert "own document" in told[0]


@pytest.mark.parametrize("node", ["jepa", "tokens"])
def test_a_run_gives_its_placebo_what_it_must_avoid(small, monkeypatch, capsys, node):
    seen: list[torch.Tensor | None] = []

    def watched(rows, step_context, device, node):
        seen.append(step_context.related)
        return other_rows(rows, step_context, device, node)

    monkeypatch.setattr(auxiliary_loss, "other_rows", watched)
    chosen = {"jepa": "objective=patch", "tokens": "objective=mtp"}[node]
    few = (chosen, "trainer.max_steps=2", "data.batch_tokens=512")
    task = fit(small(*few, f"{node}.placebo=true"))
    assert _placebo(task.trainer) == {"own_document": 1.0}
    trained = [known for known in seen if known is not None]
    assert len(trained) == 2
    assert all(known.all() for known in trained)  # the text is one document
    assert capsys.readouterr().err.count("rows get a target of their own document") == 1
    given = Inputs()
    assert not _placebo(fit(small(*few), given).trainer)
    assert given.keys == {"inputs", "targets"}


class Inputs(Watch):
    """Keeps the names of what a micro-batch has."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.keys = set(batch)


def test_shifts_count_the_rows_that_they_move_onto_related_ones():
    rng = np.random.default_rng(0)
    for rows in (2, 3, 8, 13):
        one = torch.from_numpy(rng.random((rows, rows)) < 0.3)
        among = shifts(rows)
        near = max(1, rows // 4)
        assert among.tolist() == list(range(near, rows - near + 1))
        want = [sum(bool(one[i, (i + s) % rows]) for i in range(rows)) for s in among.tolist()]
        assert related_rows(one, among).tolist() == want
