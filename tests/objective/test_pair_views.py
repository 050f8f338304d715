"""LLM-JEPA on pairs: each view alone, by the formulas of the paper; the packed pass is the separate ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepa_lm.data.rows import VIEWS
from jepa_lm.model import Mask
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import NOW, at, auxiliary, compared, noise, random_batch

PAIRS = ("objective=llm_jepa_pairs", NOW)
SEPARATE = "jepa.context.view.packed=false"
PLACES = torch.tensor([[0, 5, 5, 9], [2, 20, 20, 32], [0, 1, 1, 2], [0, 3, 9, 30]])
"""Where the views of four rows start and stop; the second is one of several turns, and ends the row."""


def batch_of_pairs() -> dict:
    return {**random_batch(), VIEWS: PLACES}


def alone(task, ids: torch.Tensor, vectors: torch.Tensor | None = None) -> torch.Tensor:
    """Return the final hidden state [D] at the end of a text that is alone, after learned vectors if any."""
    model, mask = task.model, None
    if vectors is not None:
        where = torch.arange(len(ids) + len(vectors)) >= len(ids)
        full = torch.cat((vectors.new_zeros(len(ids), model.dim), vectors))
        ids = torch.cat(
            (ids, torch.full((len(vectors),), 7))
        )  # any token: its embedding is replaced
        mask = Mask(where, full, False)
    return model.encode(model.embed(ids[None], mask)).final[0, -1]


def expected(task, batch: dict) -> torch.Tensor:
    """Return both latents of each row [B, 2, D], one text at a time."""
    rows, vectors = [], task.objective.context.view.vector
    for ids, (start, stop, begin, end) in zip(batch["inputs"], PLACES.tolist(), strict=True):
        rows.append(
            torch.stack((alone(task, ids[start:stop], vectors), alone(task, ids[begin:end])))
        )
    return torch.stack(rows)


MODEL = (
    "model/value_embedding=shared",
    "model.value_embedding.layers=[1,2]",
    "model.value_embedding.width=16",
)
"""Everything that reads neighbours: bigrams and the smear gate by default, and values from the tokens."""


@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("packed", [True, False])
def test_latents_are_those_of_texts_that_are_alone(build, tokens, packed):
    words = (f"jepa.context.view.tokens={tokens}", f"jepa.context.view.packed={packed}")
    task = build(*PAIRS, *MODEL, *words)
    noise(task)
    task.double()
    batch = batch_of_pairs()
    wanted = expected(task, batch)
    latents, _, _ = compared(task, batch)
    torch.testing.assert_close(latents.context, wanted.float(), rtol=1e-5, atol=1e-5)
    cosine = F.cosine_similarity(wanted[:, 0], wanted[:, 1], dim=-1)
    assert auxiliary(task, batch).item() == pytest.approx((1 - cosine).mean().item(), abs=1e-5)


def test_the_packed_pass_trains_as_the_separate_ones_do(build):
    found = []
    for words in ((), (SEPARATE,)):
        task = build(*PAIRS, *words)
        noise(task)
        auxiliary(task, batch_of_pairs()).backward()
        found.append({n: p.grad for n, p in task.named_parameters() if p.grad is not None})
    packed, separate = found
    assert packed.keys() == separate.keys()
    assert packed["objective.context.view.vector"].abs().sum() > 0
    for name, grad in packed.items():
        torch.testing.assert_close(grad, separate[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("words", [(), (SEPARATE,)])
def test_neither_view_sees_the_other_or_what_follows(build, words):
    task = build(*PAIRS, *words)
    noise(task)
    batch = batch_of_pairs()
    before = compared(task, batch)[0].context
    ids = batch["inputs"].clone()
    ids[0, 5:] += 1  # all after the first view of row 0
    ids[1, :20] += 1  # all before the second view of row 1
    ids[3, 3:9] += 1  # between the views of row 3
    after = compared(task, {**batch, "inputs": ids % 400})[0].context
    same = (before - after).abs().amax(-1) < 1e-5
    assert same.tolist() == [[True, False], [False, True], [True, True], [True, True]]


def test_both_sides_are_trained_unless_the_gradient_is_stopped(build):
    def gradient(*words: str) -> torch.Tensor:
        task = build(*PAIRS, *words)
        noise(task)
        auxiliary(task, batch_of_pairs()).backward()
        return task.model.embedding.table.weight.grad

    free, stopped = gradient(), gradient("jepa.target.stop_gradient=true")
    ids = batch_of_pairs()["inputs"]
    asked = set(ids[0, :5].tolist()) | set(ids[1, 2:20].tolist()) | set(ids[2, :1].tolist())
    asked |= set(ids[3, :3].tolist())
    answered = [i for i in ids[3, 9:30].tolist() if i not in asked]  # tokens of an answer alone
    assert free[answered].abs().sum() > 0
    assert not stopped[answered].any()
    assert stopped.any()


def test_the_placebo_predicts_the_answer_of_another_row(build):
    task = build(*PAIRS, "jepa.placebo=true")
    noise(task)
    own = expected(task, batch_of_pairs())
    latents, _, _ = compared(task, batch_of_pairs())
    (pair,) = latents.pairs
    shifts = [
        k
        for k in range(1, 4)
        if torch.allclose(pair.target[:, 0], own.roll(-k, 0)[:, 1], atol=1e-4)
    ]
    assert len(shifts) == 1
    torch.testing.assert_close(pair.prediction[:, 0], own[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("words", [(), (SEPARATE,)])
def test_reach_trains_the_last_blocks_alone(build, words):
    task = build(*PAIRS, "jepa.reach=1", *words)
    noise(task)
    wanted = expected(task, batch_of_pairs())
    torch.testing.assert_close(
        compared(task, batch_of_pairs())[0].context, wanted, rtol=1e-4, atol=1e-4
    )
    auxiliary(task, batch_of_pairs(), at()).backward()
    trained = {
        n.split(".")[3] for n, p in task.named_parameters() if p.grad is not None and "blocks" in n
    }
    assert trained == {"2"}
    assert task.model.embedding.table.weight.grad is None
    assert not task.objective.context.view.vector.requires_grad


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model/injector=chunk",), "packed=true: the injector's chunks would hold two views"),
        (("model=mamba2",), "packed=true: this backbone has no attention to mask"),
        (
            ("jepa.target={_target_: jepa_lm.objective.targets.SamePass}",),
            "jepa.target: PairViews makes both latents",
        ),
        (("jepa.context.view.tokens=-1",), "tokens=-1"),
        (("+jepa.context.pooling={_target_: jepa_lm.objective.pooling.SequenceMean}",), "offsets"),
    ],
)
def test_mistakes(build, words, message):
    with pytest.raises(UserError, match=message):
        build(*PAIRS, *words)
