"""Objectives of the field: each loss equals a formula written here, independent of the parts.

Hidden states come from the model; everything after them is recomputed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tests.objective.conftest import DEEP_ENOUGH, FIELD, NOW, at, auxiliary, noise, random_batch

CPU = torch.device("cpu")


def states(task, batch, taps=()):
    encoded = task.model.encode(task.model.embed(batch["inputs"]), taps)
    return encoded.final.double(), encoded


def seen(task, batch, view, purpose) -> torch.Tensor:
    """Return the final hidden states of a second pass."""
    what = view(batch["inputs"], at(), purpose)
    return task.model.encode(task.model.embed(what.inputs, what.mask)).final.double()


def linear(module, x):
    return x @ module.weight.double().T + (0 if module.bias is None else module.bias.double())


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def smooth_l1(p, t, beta=1.0):
    d = (p - t).abs()
    return torch.where(d < beta, d * d / (2 * beta), d - beta / 2).mean()


def layer_norm(x, gain=1.0, bias=0.0):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias


def projected(chain, x):
    """Linear, batch norm over all rows, GELU, linear."""
    up, norm, down = (chain.parts[name] for name in ("up", "norm", "down"))
    rows = linear(up.linear, x).flatten(0, -2)
    rows = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    y = gelu(rows * norm.gain.double() + norm.bias.double())
    return linear(down.linear, y).view(*x.shape[:-1], -1)


def stepped(transition, z, e):
    h = layer_norm(
        torch.cat((z, e), -1), transition.norm.weight.double(), transition.norm.bias.double()
    )
    for i, layer in enumerate(transition.linears):
        h = linear(layer, gelu(h) if i else h)
    return z + h


def epps_pulley(rows, directions):
    """The statistic of rows [N, D] as released: 17 knots on [0, 3], trapezoids, times N."""
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    w = torch.full_like(t, 2 * 3 / 16)
    w[[0, -1]] = 3 / 16
    phi = torch.exp(-t * t / 2)
    angle = (rows @ directions.double())[..., None] * t
    error = (angle.cos().mean(0) - phi) ** 2 + angle.sin().mean(0) ** 2
    return len(rows) * (error @ (w * phi)).mean()


def directions(task, latents):
    return task.objective.regularizers["sigreg"].draw(latents, at(), CPU)[-1]


def chosen(task, count):
    (scores,) = task.objective.alignment.draw(4, 32, at(), CPU)
    return [sorted(row.argsort(descending=True)[:count].tolist()) for row in scores]


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def stp(task, batch):
    h, _ = states(task, batch)
    triples = zip(h, chosen(task, 3), strict=True)
    return sum(1 - cosine(x[r] - x[s], x[t] - x[r]) for x, (s, r, t) in triples) / 4


def stp_span(task, batch):
    h, _ = states(task, batch)
    spans = list(zip(h, chosen(task, 2), strict=True))
    return sum(1 - cosine(x[a] - x[0] + x[-1] - x[b], x[b] - x[a]) for x, (a, b) in spans) / 4


def lejepa(task, batch):
    o = task.objective
    views = [
        projected(o.projector, seen(task, batch, view, purpose).mean(1))
        for view, purpose in ((o.context.view, "context"), (o.target.view, "target"))
    ]
    centre = sum(views) / 2
    apart = sum((v - centre).pow(2).mean() for v in views) / 2
    a = directions(task, 2)
    return 0.98 * apart + 0.02 * sum(epps_pulley(v, a) for v in views) / 2


def lewm_paper(task, batch):
    o, (h, _) = task.objective, states(task, batch)
    z = projected(o.projector, h)
    actions = task.model.embedding(batch["inputs"]).double()[:, 1:]
    p = projected(
        o.predictor.parts["project"], stepped(o.predictor.parts["step"], z[:, :-1], actions)
    )
    a = directions(task, 32)
    spread = sum(epps_pulley(z[:, t], a) for t in range(32)) / 32
    return (p - z[:, 1:]).pow(2).mean() + 0.1 * spread


def of_copy(task, batch, blocks):
    """Return layer-normed block outputs of the copy."""
    copy, part = task.objective.target.encoder, task.objective.target.part
    start = task.model.embed(batch["inputs"]) if part == "blocks" else copy.embed(batch["inputs"])
    places = [range(task.model.layers)[b] for b in blocks]
    assert len(set(places)) == len(places)
    taps = copy.encode(start, places).taps
    return [layer_norm(taps[place].double()) for place in places]


def masked(task, batch):
    """Return predictions at the masked positions, and those positions."""
    o = task.objective
    where = o.context.view(batch["inputs"], at(), "context").positions
    x = seen(task, batch, o.context.view, "context")[:, where]
    return linear(o.predictor.down, gelu(linear(o.predictor.up, x))), where


def data2vec(task, batch):
    p, where = masked(task, batch)
    target = sum(of_copy(task, batch, (-3, -2, -1))) / 3
    return smooth_l1(p, target[:, where], beta=4.0)


def bootleg(task, batch):
    p, where = masked(task, batch)
    each = of_copy(task, batch, (0, 2, -1))
    parts = zip(p.chunk(3, -1), each, strict=True)
    return sum((q - t[:, where]).pow(2).mean() for q, t in parts) / 3


def lse_mtp(task, batch):
    h, _ = states(task, batch)
    found = 0
    for k, m in enumerate(task.objective.predictor.maps, start=1):
        z, tokens = linear(m, h[:, :-k]), batch["targets"][:, k:]
        rows = task.model.embedding(tokens).double()
        logits = task.model.logits(z.float()).flatten(0, 1)
        ce = F.cross_entropy(logits.double(), tokens.flatten())
        found = found + 0.1 * (z - h[:, k:]).pow(2).mean() + 0.1 * (z - rows).pow(2).mean() + ce
    return found / 2  # times jepa.weight=2, each horizon counts once


def hilp(task, batch):
    h, _ = states(task, batch)
    levels, windows = task.objective.predictor.parts, task.objective.predictor.parts["windows"]
    e = task.model.embedding(batch["inputs"]).double()
    z, ahead = stepped(levels["tokens"], h[:, :-1], e[:, 1:]), h[:, 1:]
    laws = [task.model.logits(x.float()).double().log_softmax(-1) for x in (ahead, z)]
    kl = (laws[0].exp() * (laws[0] - laws[1])).sum(-1).mean()
    means = torch.stack([h[:, i : i + 4].mean(1) for i in range(29)], 1)
    u = means[:, :-4]
    u = u + linear(windows.down, gelu(linear(windows.up, u)))
    return 10 * smooth_l1(z, ahead) + 0.1 * kl + smooth_l1(u, means[:, 4:])


FORMULAS: dict[str, Callable] = {
    f.__name__: f for f in (hilp, lse_mtp, stp, stp_span, data2vec, bootleg, lejepa, lewm_paper)
}


def test_every_one_has_a_formula():
    assert set(FORMULAS) == set(FIELD)


def built(build, name, *more):
    task = build(f"objective={name}", NOW, *DEEP_ENOUGH.get(name, ()), *more)
    noise(task, std=0.05)
    draw = torch.Generator().manual_seed(5)
    for key, buffer in task.objective.target.named_buffers():
        if buffer.ndim == 2 and not key.startswith("view"):
            buffer += 0.03 * torch.randn(buffer.shape, generator=draw)
    return task


@pytest.mark.parametrize("name", FORMULAS)
def test_the_loss_is_its_formula(build, name):
    task, batch = built(build, name), random_batch()
    with torch.no_grad():
        want = FORMULAS[name](task, batch).item()
    assert auxiliary(task, batch).item() == pytest.approx(want, rel=2e-4)


def test_lejepa_takes_both_views_as_one_sample_on_request(build):
    task, batch = built(build, "lejepa", "jepa.regularizers.sigreg.per_step=false"), random_batch()
    o = task.objective
    with torch.no_grad():
        views = [
            projected(o.projector, seen(task, batch, view, purpose).mean(1))
            for view, purpose in ((o.context.view, "context"), (o.target.view, "target"))
        ]
        want = epps_pulley(torch.cat(views), directions(task, 2)).item()
        _, main = task.model(batch["inputs"])
        parts = o.components(task.model, batch, main, at())
    assert parts["sigreg"].item() == pytest.approx(want, rel=1e-4)
