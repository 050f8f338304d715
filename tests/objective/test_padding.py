"""Padding: what follows the end of a row's text changes no part of an objective, and is drawn for none."""

from __future__ import annotations

import pytest
import torch

from jepa_lm.objective.alignment import Given
from jepa_lm.objective.displacements import Displacements
from tests.objective.conftest import DEEP_ENOUGH, EVERY, NOW, at, compared, noise, random_batch

ENDS = torch.tensor([30, 9, 22, 13])
"""Targets of each of four rows that belong to its text."""


def padded(fill: int) -> dict:
    """Return a batch whose rows end early, with the same text before any padding."""
    batch = random_batch()
    whole = torch.arange(32) < ENDS[:, None]
    tokens = torch.cat((batch["inputs"], batch["targets"][:, -1:]), 1)
    pads = torch.arange(33) > ENDS[:, None]
    tokens = torch.where(pads, (torch.arange(33) * fill + fill) % 400, tokens)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "whole": whole}


def parts(task, batch: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # a predictor's own dropout
    latents, _, _ = compared(task, batch)
    found = task.objective.losses_of(latents, at(), all_of_them=True)
    return {name: part.detach() for name, part in found.items()}


@pytest.mark.parametrize("name", EVERY)
def test_what_fills_a_row_does_not_matter(build, name):
    """Neither for predictions nor for regularizers, pooled latents and batch norms."""
    task = build(f"objective={name}", *DEEP_ENOUGH.get(name, ()), NOW)
    noise(task)
    one, other = padded(3), padded(7)
    for placebo in (False, True):
        task.objective.placebo = placebo
        torch.testing.assert_close(parts(task, one), parts(task, other), rtol=1e-5, atol=1e-7)
    # Planted fault: data that do not say where they end.
    task.objective.placebo = False
    unsaid = [parts(task, {k: x for k, x in b.items() if k != "whole"}) for b in (one, other)]
    assert any(abs(unsaid[0][k] / unsaid[1][k] - 1) > 1e-4 for k in unsaid[0])


def test_moves_are_within_the_text_and_its_documents():
    positions = torch.arange(20.0).expand(400, 20)[..., None]
    ends = torch.randint(0, 21, (400, 1), generator=torch.Generator().manual_seed(0))
    whole = torch.arange(20) < ends
    starts = (torch.arange(20) % 8 == 0).expand(400, 20)
    for given in (Given(of_text=whole), Given(of_text=whole, starts=starts)):
        part = Displacements(form="span", seed=0)
        (pair,) = part(None, positions, positions, given._replace(step_context=at()))
        # From the first to the last latent of a document: the moves around the span, and along it.
        last = (pair.prediction + pair.target)[:, 0, 0]
        counted = pair.rows[:, 0] > 0
        assert (last[counted] < ends[counted, 0]).all()
        assert not counted[ends[:, 0] < 3].any()
        assert 0.3 < counted.float().mean() < 1


def test_a_placebo_counts_what_is_text_in_both_rows(build):
    task = build("objective=nextlat", NOW, "jepa.placebo=true")
    batch = padded(3) | {
        "answers": torch.rand(4, 32, generator=torch.Generator().manual_seed(1)) > 0.5
    }
    (pair, *_) = compared(task, batch)[0].pairs
    (shift,) = [
        k for k in range(4) if torch.equal(pair.tokens, batch["targets"][:, 1:].roll(-k, 0))
    ]
    assert shift
    assert torch.equal(pair.answers, batch["answers"][:, 1:].roll(-shift, 0))
    both = batch["whole"] & batch["whole"].roll(-shift, 0)
    assert torch.equal(pair.rows > 0, both[:, 1:])
