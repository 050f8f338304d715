"""Token objectives: what each predicts, from what it can see, at which cost; mistakes in their settings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from jepa_lm.objective import TokenPrediction
from jepa_lm.objective.auxiliary_loss import LOSS
from jepa_lm.objective.token_heads import (
    LinearHead,
    ParallelBlocks,
    Read,
    SequentialBlocks,
    SharedHead,
)
from jepa_lm.objective.token_losses import LaterToken, TokenBag, TokenOrder
from jepa_lm.objective.views import RandomMask, Suffix
from jepa_lm.training.auxiliary import drawn
from jepa_lm.training.flops import flops_per_token
from jepa_lm.utils.errors import UserError
from tests.objective.conftest import TOKENS, at, noise, random_batch


def token_loss(task, batch, step_context=None):
    """Return the token loss of a batch and its components."""
    model, tokens = task.model, task.tokens
    main = model.encode(model.embed(batch["inputs"]), *tokens.main_needs(model))
    parts = tokens.components(model, batch, main, step_context or at())
    return parts.pop(LOSS), parts


def gradients(task, loss):
    task.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}


def test_the_shared_head_scores_the_models_own_logits(build):
    task, batch = build("objective=mtp"), random_batch()
    noise(task)
    assert not list(task.tokens.parameters())
    model, targets = task.model, batch["targets"]
    z = model(batch["inputs"])[0]
    nll = [F.cross_entropy(z[:, :-k].flatten(0, 1), targets[:, k:].flatten()) for k in (1, 2)]
    loss, parts = token_loss(task, batch)
    torch.testing.assert_close(loss, 0.5 * nll[0] + 0.25 * nll[1])
    assert parts.keys() == {"offset_1", "offset_2"}
    half = token_loss(task, batch, at(33))[0]  # of 100 steps; faded out after 66
    torch.testing.assert_close(half, loss / 2)


def test_parallel_blocks_read_the_trunks_output(build):
    words = ("tokens.offsets=[1,3]", "tokens.weights=[1.0,0.5]", "tokens.head.blocks=2")
    task, batch = build("objective=mtp_parallel", *words), random_batch()
    noise(task)
    model, targets = task.model, batch["targets"]
    last = model.encode(model.embed(batch["inputs"])).last
    want = 0.0
    for k, weight, block in zip((1, 3), (1.0, 0.5), task.tokens.head.blocks, strict=True):
        hidden = F.rms_norm(block(last), (64,), eps=model.final_norm_eps)
        z = model.logits(hidden)
        want += weight * F.cross_entropy(z[:, :-k].flatten(0, 1), targets[:, k:].flatten())
    torch.testing.assert_close(token_loss(task, batch)[0], want)


def test_sequential_blocks_are_given_the_next_tokens(build):
    words = ("tokens.offsets=[1,2]", "tokens.weights=null", "tokens.head.blocks=2")
    task, batch = build("objective=mtp_sequential", *words), random_batch()
    noise(task)
    model, head = task.model, task.tokens.head
    ids, hidden, want = batch["inputs"], None, 0.0
    hidden = model.encode(model.embed(ids)).last
    for k in (1, 2):  # the plain form, on rows that become shorter
        hidden = hidden[:, : ids.shape[1] - k]
        both = (F.rms_norm(x, (64,)) for x in (hidden, model.embedding(ids[:, k:])))
        hidden = head.blocks[k - 1](head.mixes[k - 1](torch.cat(tuple(both), -1)))
        z = model.logits(F.rms_norm(hidden, (64,), eps=model.final_norm_eps))
        want += 0.5 * F.cross_entropy(z.flatten(0, 1), batch["targets"][:, k:].flatten())
    torch.testing.assert_close(token_loss(task, batch)[0], want, rtol=1e-5, atol=1e-5)


def test_masked_input_at_ratio_0_is_the_cross_entropy_once_more(build):
    task, batch = build("objective=mir", "tokens.view.high=0.0"), random_batch()
    noise(task)
    ce = F.cross_entropy(task.model(batch["inputs"])[0].flatten(0, 1), batch["targets"].flatten())
    alone = gradients(task, ce)
    main = task._losses(batch, None)[0]
    both = gradients(task, main + task.tokens.weight * token_loss(task, batch)[0])
    both.pop("tokens.view.vector", None)
    assert both.keys() == alone.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(both[name], 1.4 * gradient, rtol=1e-4, atol=1e-6)


def test_masked_input_hides_its_share_and_keeps_targets(build):
    view = build("objective=mir", "tokens.view.low=0.25", "tokens.view.high=0.75").tokens.view
    inputs = torch.zeros(200, 100, dtype=torch.long)
    seen = view(inputs, at(), "x")
    where = seen.mask.where
    assert seen.inputs is inputs
    assert not where[:, :8].any()
    shares = where[:, 8:].float().mean(1)
    assert shares.min() < 0.35
    assert shares.max() > 0.65
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
    halves = [view(inputs[:100], at(rank=r, world_size=2), "x").mask.where for r in (0, 1)]
    assert torch.equal(torch.cat(halves), where)


@pytest.mark.parametrize("name", [n for n in TOKENS if n != "mir"])
def test_no_prediction_sees_its_target(build, name):
    """Changing a token changes no logits that predict it or a token before it."""
    task = build(f"objective={name}", "data.seq_len=32")
    noise(task)
    changed, place = random_batch()["inputs"], 20
    found = []
    for _ in range(2):
        inputs = changed.clone()
        main = task.model.encode(task.model.embed(inputs))
        (readout,) = task.tokens.head(task.model, Read(main, inputs, True))[-1:]
        found.append(readout.features.view(4, 32, -1))
        changed[:, place] = (changed[:, place] + 1) % 400
    # The position place - 1 - k predicts x_place at offset k; those before it predict earlier tokens.
    k = task.tokens.offsets[-1]
    before, after = (f[:, : place - k] for f in found)
    assert torch.equal(before, after)
    assert not torch.equal(found[0][:, place:], found[1][:, place:])


def test_the_sequential_head_does_see_the_token_before_its_target(build):
    """The check above would find a head that is given one token more."""
    task = build("objective=mtp_sequential")
    noise(task)
    ids = random_batch()["inputs"]
    other = ids.clone()
    other[:, 20] = (other[:, 20] + 1) % 400
    found = []
    for inputs in (ids, other):
        main = task.model.encode(task.model.embed(inputs))
        (readout,) = task.tokens.head(task.model, Read(main, inputs, True))
        found.append(readout.features.view(4, 32, -1))
    assert torch.equal(found[0][:, :19], found[1][:, :19])
    assert not torch.equal(found[0][:, 19], found[1][:, 19])  # it predicts x_21 from x_20


@pytest.mark.parametrize(
    ("name", "passes"), [("mtp", 1), ("top", 1), ("mtp_sequential", 1), ("mir", 2)]
)
def test_a_loss_costs_the_passes_it_says(build, monkeypatch, name, passes):
    task, batch = build(f"objective={name}"), random_batch()
    calls, run = [], type(task.model.backbone).forward
    monkeypatch.setattr(
        type(task.model.backbone),
        "forward",
        lambda self, *a, **k: calls.append(k["until"]) or run(self, *a, **k),
    )
    task._losses(batch, task.tokens.draw(batch["inputs"], at()))
    assert sum(until == task.model.layers for until in calls) == passes


def test_a_placebo_predicts_another_row(build):
    task, batch = build("objective=mtp", "tokens.placebo=true"), random_batch(rows=2)
    swapped = {**batch, "targets": batch["targets"].flip(0)}
    plain = build("objective=mtp")
    assert torch.equal(token_loss(task, batch)[0], token_loss(plain, swapped)[0])
    # Weights belong to targets, so they go with them.
    weights = torch.arange(64.0).view(2, 32) / 31.5
    weighted = {**batch, "weights": weights}
    theirs = {**swapped, "weights": weights.flip(0)}
    assert torch.equal(token_loss(task, weighted)[0], token_loss(plain, theirs)[0])


@pytest.mark.parametrize("name", ["mtp_sequential", "mir"])
def test_reach_trains_the_last_blocks_alone(build, name):
    task, batch = build(f"objective={name}", "tokens.reach=1", "model/head=untied"), random_batch()
    noise(task)
    found = gradients(task, token_loss(task, batch)[0])
    blocks = {n.split(".")[3] for n in found if n.startswith("model.backbone.blocks")}
    assert blocks == {"2"}
    assert not any("embedding" in n or "vector" in n for n in found)


def test_two_reaches_that_differ_are_refused(build):
    words = ("objective=lewm", "tokens=mtp", "tokens.reach=1")
    build(*words, "jepa.reach=1")
    build(*words)
    with pytest.raises(UserError, match=r"jepa\.reach=2; tokens\.reach=1: .* cut at one block"):
        build(*words, "jepa.reach=2")


# ---- mistakes

MODEL = SimpleNamespace(layers=3, dim=64, vocab_size=400)
SMALL = dict(dim=64, heads=4, hidden=64)
MASK = dict(dim=64, low=0.0, high=0.5, first=8, hide_next=True, start_std=0.02, seed=0)


def later(**more):
    return lambda: TokenPrediction(weight=1.0, token=LaterToken(), **{"head": SharedHead(), **more})


def windowed(token, window, **more):
    head = more.pop("head", None) or (lambda: LinearHead(dim=64, vocab_size=400))
    return lambda: TokenPrediction(weight=1.0, token=token(window=window), head=head(), **more)


def masked(**more):
    return lambda: later(view=RandomMask(**{**MASK, **more}))()


MISTAKES = [
    (later(offsets=[1, 32]), r"tokens\.offsets=\[1, 32\]: data\.seq_len=32 has no token 32 places"),
    (later(offsets=[]), r"tokens\.offsets=\[\]: needs different offsets, at least one"),
    (later(offsets=[1, 1]), r"tokens\.offsets=\[1, 1\]: needs different offsets"),
    (later(offsets=[0, 1]), r"tokens\.offsets: 0 is the cross entropy itself"),
    (later(offsets=[1], weights=[1, 2]), r"tokens\.weights: has 2 entries for 1 offsets; give one"),
    (later(offsets=[1], schedules=[]), r"tokens\.schedules: has 0 entries for 1 offsets; give one"),
    (later(offsets=[1], weights=[0]), r"tokens\.weights: are all 0; .* tokens\.weight=0"),
    (later(offsets=[1], reach=9), r"tokens\.reach=9: 0 to the 3 blocks, or null"),
    (later(view=Suffix(fraction=0.5)), r"tokens\.view: Suffix drops positions"),
    (masked(low=0.7), r"low=0\.7: must not exceed high=0\.5"),
    (masked(first=32), r"tokens\.view\.first=32: leaves nothing to mask of data\.seq_len=32"),
    (masked(dim=9), r"tokens\.view\.dim=9: must equal model\.dim=64"),
    (windowed(TokenBag, 0), r"window=0: expected a whole number of at least 2"),
    (
        windowed(TokenBag, 40),
        r"tokens\.token\.window=40: longer than data\.seq_len=32; choose 2 to 32",
    ),
    (
        windowed(TokenOrder, 8, offsets=[1]),
        r"tokens\.offsets=\[1\]: TokenOrder looks at a whole window",
    ),
    (windowed(TokenOrder, 8, head=SharedHead), r"tokens\.head: SharedHead predicts the next token"),
    (
        later(head=LinearHead(dim=9, vocab_size=400)),
        r"tokens\.head\.dim=9: must equal model\.dim=64",
    ),
    (later(head=LinearHead(dim=64, vocab_size=9)), r"tokens\.head\.vocab_size=9: must equal model"),
    (
        later(head=ParallelBlocks(**SMALL, blocks=2)),
        r"tokens\.head\.blocks=2: tokens\.offsets=\[0\], make their number equal",
    ),
    (
        later(head=SequentialBlocks(**SMALL, blocks=1), offsets=[2]),
        r"tokens\.offsets=\[2\]: SequentialBlocks goes forward token by token; set \[1\]",
    ),
]


@pytest.mark.parametrize(("make", "said"), MISTAKES)
def test_a_mistake_is_told_in_one_line(make, said):
    with pytest.raises(UserError, match=said) as told:
        make().prepare(MODEL, 32)
    assert "\n" not in str(told.value)


def test_mistakes_on_the_command_line_name_their_key(build):
    with pytest.raises(UserError, match=r"^tokens\.token\.window=0: expected a whole number"):
        build("objective=fsp", "tokens.token.window=0")
    with pytest.raises(UserError, match=r"^tokens\.offsets: tokens=none has no such setting"):
        build("+tokens.offsets=[1]")


NOISED = (
    "objective=nextlat",
    "jepa/distance=smooth_l1",
    "+jepa.context.view={_target_: jepa_lm.objective.views.RandomReplacement, rate: 0.3, "
    "vocab_size: 400, seed: 3}",
    "tokens=mir",
)
SHARED = (*NOISED, "tokens.view=context")


def test_one_noised_pass_serves_a_latent_and_a_token_loss(build):
    """Both arms of the same text: one more pass than the control, with the same replaced tokens."""
    batch, passes, losses, flops = random_batch(), [], [], []
    for words in (
        SHARED,
        (*NOISED, "tokens.view=${jepa.context.view}"),
        (*SHARED, "jepa.weight=0"),
    ):
        task = build(*words)
        noise(task)
        count = []
        task.model.backbone.register_forward_hook(lambda *_, count=count: count.append(1))
        active = frozenset(k for k, o in task.auxiliaries.items() if o.active(task.clock))
        _, _, found = task._losses(batch, drawn(task.auxiliaries, active, batch, at()))
        passes.append(len(count) // 2)  # the two halves of the backbone
        losses.append(found["tokens"]["loss"])
        flops.append(sum(flops_per_token(task).values()))
        if words == SHARED:
            seen = task.objective.context.view(batch["inputs"], at(), "context").inputs
            assert not torch.equal(seen, batch["inputs"])
            logits = task.model(seen)[0].flatten(0, 1)
            want = F.cross_entropy(logits, batch["targets"].flatten())
    assert passes == [2, 3, 2]
    torch.testing.assert_close(losses[0], want)
    torch.testing.assert_close(losses[2], want)  # without the latent loss, of the same text
    assert abs(losses[1] / want - 1) > 1e-3  # a view of its own has its own draws
    assert flops[0] < flops[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tokens=mir", "tokens.view=context"), "jepa.context.view masks and replaces nothing"),
        (
            ("objective=vicreg", "tokens=mir", "tokens.view=context"),
            "SpanMask learns its mask vector, .*tokens.view=.*jepa.context.view",
        ),
        ((*SHARED, "jepa.reach=1"), "set .* jepa.reach=null and tokens.reach=null"),
        ((*SHARED[:-1], "tokens.view=contxt"), r"tokens\.view=contxt: "),
    ],
)
def test_a_pass_that_cannot_be_shared_is_refused(build, words, said):
    with pytest.raises(UserError, match=said):
        build(*words)


def test_a_weight_without_a_loss_is_refused(small):
    from jepa_lm.utils.config import resolve
    from jepa_lm.utils.values import check_values

    with pytest.raises(UserError, match=r"tokens\.weight=0\.5: tokens=none has no loss to weigh"):
        check_values(resolve(small("tokens.weight=0.5")))
