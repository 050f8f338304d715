"""Every fast path on the device against float64 on the CPU.

Differences are relative: |a - b| / |b|, in the 2-norm over all values of a result.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.scale import Scale
from benchmarks.measure import Claim, at_most
from jepa_lm.model.cross_entropy import chunked_cross_entropy
from jepa_lm.model.foreign_scan import Scan
from jepa_lm.model.heads import TanhSoftcap
from jepa_lm.model.kernels import cuda_scan, has_triton, triton_ssd
from jepa_lm.model.layers import CausalSelfAttention, RotaryTables
from jepa_lm.model.ssd import final_state, ssd, ssd_sequential
from jepa_lm.objective.sigreg import knot_weights, statistic, statistic_reference
from jepa_lm.optim.muon_adamw import MuonAdamW
from jepa_lm.optim.newton_schulz import orthogonalise, orthogonalise_reference
from jepa_lm.utils.errors import UserError

EXACT = 1e-5
"""Of float32 results."""
EXACT_GRADIENT = 1e-4
COARSE = 2e-3
"""Of losses whose products are in bfloat16."""
COARSE_GRADIENT = 2e-2
SCAN_COARSE = 3e-2
"""With inputs in bfloat16. The gradient of a sums terms of both signs over all positions."""
NEWTON_SCHULZ_COARSE = 5e-2
"""Five iterations in bfloat16, each of which amplifies rounding."""
DTYPES = {
    "float32": (torch.float32, EXACT, EXACT_GRADIENT),
    "bfloat16": (torch.bfloat16, COARSE, COARSE_GRADIENT),
}
"""Dtype of the products, and the tolerance of values and of gradients."""
CAP = 30.0
Values = Sequence[Tensor]


def claims(scale: Scale) -> Iterator[Claim]:
    """Yield claims about parts of a step, then about the losses of six presets, eager."""
    from benchmarks.gpu import losses

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for part in (cross_entropy, sigreg, scan, newton_schulz, update, attention):
        torch.manual_seed(0)
        yield from part(scale)
    yield from losses.claims(scale)


def compiled_claims(scale: Scale) -> Iterator[Claim]:
    """Yield claims about the losses of six presets, compiled."""
    from benchmarks.gpu import losses

    yield from losses.compiled_claims(scale)


def difference(found: Tensor, exact: Tensor) -> float:
    """Return the relative difference of two results."""
    a, b = found.detach().double().cpu(), exact.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def agrees(name: str, found: Values, exact: Values, tolerance: float, **details: Any) -> Claim:
    """Return the claim that results agree; the value is the largest of their differences."""
    differences = [difference(a, b) for a, b in zip(found, exact, strict=True)]
    return at_most(
        f"parity/{name}", max(differences), unit="relative difference", target=tolerance,
        limit=0.0, spread=0.0, details={"each": [float(f"{d:.3g}") for d in differences], **details},
    )  # fmt: skip


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return a loss and its gradients at copies of the inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    loss = function(*leaves)
    loss.backward()
    return loss, [leaf.grad for leaf in leaves if leaf.grad is not None]


def _compared(
    scale: Scale,
    name: str,
    fast: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    *inputs: Tensor,
) -> Iterator[Claim]:
    """Yield claims about value and gradients in both dtypes; inputs are float64, on the CPU."""
    loss, gradients = with_gradients(exact, *inputs)
    for label, (dtype, close, gradient) in DTYPES.items():
        here = [x.to(scale.device, torch.float32) for x in inputs]
        with torch.autocast(scale.device, dtype, enabled=dtype != torch.float32):
            found, found_gradients = with_gradients(fast, *here)
        yield agrees(f"{name}/{label}", [found], [loss], close)
        yield agrees(f"{name}/{label}/gradient", found_gradients, gradients, gradient)


def cross_entropy(scale: Scale) -> Iterator[Claim]:
    """Chunked cross entropy with soft cap, bias and z-loss, in four chunks."""
    rows, vocabulary, width = scale.pick((4096, 8192, 336), (64, 128, 16))
    features = torch.randn(rows, width, dtype=torch.float64)
    weight = 5 / width**0.5 * torch.randn(vocabulary, width, dtype=torch.float64)
    bias = torch.randn(vocabulary, dtype=torch.float64)
    targets, cap = torch.randint(vocabulary, (rows,)), TanhSoftcap(cap=CAP)

    def fast(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        aims = targets.to(x.device)
        return chunked_cross_entropy(
            x, w, b, cap, aims, z_loss_weight=1e-4, chunk_rows=rows // 4
        ).loss

    def exact(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        logits = CAP * torch.tanh((x @ w.T + b) / CAP)
        lse = logits.logsumexp(1)
        nll = lse - logits.gather(1, targets[:, None])[:, 0]
        return nll.mean() + 1e-4 * lse.square().mean()

    yield from _compared(scale, "cross_entropy", fast, exact, features, weight, bias)


def sigreg(scale: Scale) -> Iterator[Claim]:
    """SIGReg's sweep over knots, alone and with sums shared by ranks (here one)."""
    u = torch.randn(*scale.pick((64, 16, 672), (8, 4, 16)), dtype=torch.float64)
    t, weights = knot_weights(0.2, 4.0, 17, True)
    loss, gradients = with_gradients(lambda x: statistic_reference(x, t, weights), u)
    for name, joint in (("sigreg", False), ("sigreg_joint", True)):
        found, found_gradients = with_gradients(
            lambda x, joint=joint: statistic(x, t, weights, joint=joint), u.float().to(scale.device)
        )
        yield agrees(name, [found], [loss], EXACT)
        yield agrees(f"{name}/gradient", found_gradients, gradients, EXACT_GRADIENT)


def scan(scale: Scale) -> Iterator[Claim]:
    """The SSD scan in chunks, by the Triton kernels in float32 and bfloat16, by mamba-ssm in bfloat16."""
    B, T, H, P, G, N = scale.pick((2, 500, 8, 64, 1, 64), (2, 20, 2, 4, 1, 4))
    draw: dict[str, Any] = {"dtype": torch.float64}
    x, b, c = (torch.randn(B, T, *s, **draw) for s in ((H, P), (G, N), (G, N)))
    dt, a = 0.2 * torch.rand(B, T, H, **draw), -8 * torch.rand(H, **draw)
    readout, kept = torch.randn(B, T, H, P, **draw), torch.randn(B, H, P, N, **draw)

    def loss_of(function: Callable[..., Any]) -> Callable[..., Tensor]:
        def loss(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            y, state = function(x, dt, a, b, c)
            return (y * readout.to(y)).sum() / T + (state * kept.to(state)).sum() / T

        return loss

    inputs = (x, dt, a, b, c)
    exact = loss_of(ssd_sequential)
    chunk = scale.pick(64, 8)
    fast = {"ssd": loss_of(lambda *given: ssd(*given, chunk=chunk))}
    if scale.full and has_triton():
        fast["ssd_triton"] = loss_of(triton_ssd)
        fast["ssd_triton/bfloat16"] = loss_of(_with_bfloat16(triton_ssd))
    with contextlib.suppress(UserError):  # not installed, or for another PyTorch
        if scale.full and (foreign := cuda_scan("mamba_ssm", head_dim=P, state_dim=N)):
            fast["ssd_mamba_ssm/bfloat16"] = loss_of(_with_bfloat16(foreign))
    y, state = ssd_sequential(*inputs)
    _, gradients = with_gradients(exact, *inputs)
    here = [v.float().to(scale.device) for v in inputs]
    yield agrees("ssd", ssd(*here, chunk=chunk), (y, state), EXACT_GRADIENT)
    yield agrees("ssd/final_state", [final_state(*here[:4])], [state], EXACT_GRADIENT)
    for name, function in fast.items():
        tolerance = SCAN_COARSE if name.endswith("bfloat16") else EXACT_GRADIENT
        value, found = with_gradients(function, *here)
        yield agrees(f"{name}/loss", [value], [exact(*inputs)], tolerance)
        yield agrees(f"{name}/gradient", found, gradients, tolerance)


def _with_bfloat16(function: Scan) -> Callable[..., Any]:
    """Return a scan whose x, b and c are rounded to bfloat16, as autocast gives them."""

    def scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Any:
        return function(x.bfloat16(), dt, a, b.bfloat16(), c.bfloat16(), None)

    return scan


def newton_schulz(scale: Scale) -> Iterator[Claim]:
    """Newton-Schulz of stacked matrices, tall and wide."""
    for shape in scale.pick(((4, 1536, 512), (4, 512, 1536)), ((2, 24, 8), (2, 8, 24))):
        grad = torch.randn(*shape, dtype=torch.float64)
        exact = [orthogonalise_reference(g, steps=5, dtype=torch.float64) for g in grad]
        for label, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            found = orthogonalise(grad.to(scale.device), steps=5, dtype=dtype)
            tolerance = EXACT_GRADIENT if dtype == torch.float32 else NEWTON_SCHULZ_COARSE
            kind = "tall" if shape[1] > shape[2] else "wide"
            yield agrees(f"newton_schulz/{kind}/{label}", list(found), exact, tolerance)


def update(scale: Scale) -> Iterator[Claim]:
    """Three steps of Muon and AdamW; Newton-Schulz in float32, so that the rest is visible."""
    side = scale.pick(256, 16)
    shapes = ((side, side), (side, 2 * side), (2 * side, side), (side,))
    start = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    gradients = [[torch.randn_like(p) for p in start] for _ in range(3)]
    ends = []
    for device, dtype in (("cpu", torch.float64), (scale.device, torch.float32)):
        params = [torch.nn.Parameter(p.to(device, dtype, copy=True)) for p in start]
        optimizer = MuonAdamW(
            [
                {"params": params[:3], "algorithm": "muon", "lr": 0.02, "ns_dtype": "float32",
                 "row_normalize": True, "weight_decay": 0.04},
                {"params": params[3:], "algorithm": "adamw", "lr": 0.02, "weight_decay": 0.04},
            ]
        )  # fmt: skip
        for step in gradients:
            for p, gradient in zip(params, step, strict=True):
                p.grad = gradient.to(device, dtype)
            optimizer.step()
        ends.append([p.detach() for p in params])
    yield agrees("update", ends[1], ends[0], EXACT)


def attention(scale: Scale) -> Iterator[Claim]:
    """Attention with grouped keys, partly rotated dims and XSA; all positions, and the last ones only."""
    dim, heads, kv_heads, rows, positions = scale.pick((512, 8, 4, 2, 1024), (32, 4, 2, 2, 16))
    tables = RotaryTables(rope_dims=dim // heads // 2, base=10_000.0, train_length=positions // 2)
    layer = CausalSelfAttention(
        dim=dim, heads=heads, kv_heads=kv_heads, rotary=tables, q_gain=1.5, exclude_self=True
    )
    exact, here = copy.deepcopy(layer).double(), layer.to(scale.device)
    x = torch.randn(rows, positions, dim, dtype=torch.float64)
    readout = torch.randn_like(x)
    yield from _compared(
        scale,
        "attention",
        lambda x: (here(x) + readout.to(x)).square().mean(),
        lambda x: (exact(x) + readout).square().mean(),
        x,
    )
    count = positions // 4
    with torch.no_grad():
        last = here(x.float().to(scale.device), count=count)
        yield agrees("attention/last", [last], [exact(x)[:, -count:]], EXACT)
