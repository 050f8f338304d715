"""Versions, and the ceilings of this machine at the shapes of the published systems."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.scale import Scale
from benchmarks.measure import Claim, report
from jepa_lm.model.kernels import KERNELS, cuda_scan
from jepa_lm.model.ssd import ssd
from jepa_lm.utils.quoting import cut, one_line

PRODUCTS = {
    "square": (8192, 8192, 8192),
    "pr1243 mlp up": (98_304, 1536, 512),
    "pr1243 mlp down": (98_304, 512, 1536),
    "pr1243 query": (98_304, 512, 512),
    "pr903 in_proj": (65_536, 2708, 640),
    "pr903 in_proj, aligned": (65_536, 2816, 640),
    "pr903 logits": (8192, 8192, 336),
    "pr832 mlp up": (49_152, 1024, 512),
}
"""Rows, columns and inner size of matrix products, [M, N, K]."""
REPEATS = 5
ATTENTION = {"pr1243": (48, 8, 4, 2048, 64), "pr832": (12, 8, 4, 4096, 64)}
"""Rows, query heads, kv heads, positions and head width."""
SCAN = (64, 1024, 20, 64, 1, 64)
"""Of #903: rows, positions, heads, head width, groups and state size."""
CHUNK = 64
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


def claims(scale: Scale) -> Iterator[Claim]:
    """Yield reports: they are what the other figures are compared with."""
    warnings.simplefilter("ignore")  # PyTorch explains at length why a backend does not fit
    about = versions(scale)
    yield report(
        "hardware/card",
        about.get("memory_gb", 0.0),
        unit=f"GB, {about.get('gpu', 'no card')}",
        limit=None,
        spread=0.0,
        details=about,
    )
    yield report(
        "hardware/copy", _copied(scale), unit="GB/s, read and written", limit=None, spread=0.0
    )
    for name, (m, n, k) in PRODUCTS.items():
        m, n = scale.pick((m, n), (min(m, 64), min(n, 64)))
        a, b = (_random(scale, *shape) for shape in ((m, k), (k, n)))
        tflops = 2 * m * n * k / scale.seconds(_product(a, b), repeats=REPEATS) / 1e12
        yield report(
            f"hardware/product/{name}", tflops, unit="TFLOP/s", limit=None, spread=0.0,
            details={"shape": f"{m} x {n} x {k}"},
        )  # fmt: skip
    for name, shape in ATTENTION.items():
        yield attention(scale, name, shape)
    yield scan(scale)


def versions(scale: Scale) -> dict[str, Any]:
    """Return versions of packages, the GPU's name and memory, and the driver."""
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("lightning", "triton", "mamba-ssm", "hydra-core"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    if scale.full:
        about = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": about.name,
            "memory_gb": about.total_memory / 1e9,
            "multiprocessors": about.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return found


def attention(scale: Scale, name: str, shape: tuple[int, ...]) -> Claim:
    """Time each backend, forward and backward; the value is the one that PyTorch chooses itself."""
    rows, heads, kv_heads, positions, width = scale.pick(shape, (1, 2, 1, 16, 8))
    q = _random(scale, rows, heads, positions, width).requires_grad_()
    k, v = (_random(scale, rows, kv_heads, positions, width).requires_grad_() for _ in range(2))

    def run() -> None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        y.sum().backward()

    found: dict[str, Any] = {}
    for backend in BACKENDS if scale.full else ():
        try:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                found[backend.lower() + "_ms"] = 1000 * scale.seconds(run, repeats=REPEATS)
        except RuntimeError as error:
            found[backend.lower() + "_ms"] = f"refused: {str(error).splitlines()[0][:80]}"
    chosen = 1000 * scale.seconds(run, repeats=REPEATS)
    flops = 7 * rows * heads * positions**2 * width  # causal: half of 4 forward and 10 backward
    found["tflops"] = flops / chosen / 1e9
    return report(
        f"hardware/attention/{name}", chosen, unit="ms, forward and backward", limit=None, spread=0.0,
        details=found,
    )  # fmt: skip


def scan(scale: Scale) -> Claim:
    """Time each implementation of the SSD scan, forward and backward; the value is that of `kernel=auto`."""
    B, T, H, P, G, N = scale.pick(SCAN, (1, 16, 2, 4, 1, 4))
    x, b, c = (_random(scale, B, T, *shape).requires_grad_() for shape in ((H, P), (G, N), (G, N)))
    dt = (0.1 * torch.rand(B, T, H, device=scale.device)).requires_grad_()
    a = (-8 * torch.rand(H, device=scale.device)).requires_grad_()

    def milliseconds(kernel: str) -> float:
        found = cuda_scan(kernel, head_dim=P, state_dim=N) or partial(ssd, chunk=CHUNK)
        return 1000 * scale.seconds(
            lambda: found(x, dt, a, b, c)[0].sum().backward(), repeats=REPEATS
        )

    times: dict[str, Any] = {}
    for kernel in KERNELS[1:] if scale.full else ():
        try:
            times[f"{kernel}_ms"] = milliseconds(kernel)
        except Exception as error:  # of another package, too; the other figures are worth more
            times[f"{kernel}_ms"] = f"refused: {cut(one_line(error), 80)}"
    return report(
        "hardware/scan/pr903", milliseconds("auto"), unit="ms, forward and backward", limit=None,
        spread=0.0, details=times,
    )  # fmt: skip


def _random(scale: Scale, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=scale.device, dtype=torch.bfloat16)


def _product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: a @ b


def _copied(scale: Scale) -> float:
    """Return the bandwidth of a copy on the device, in GB/s."""
    n = scale.pick(1 << 30, 1 << 22)
    source = torch.empty(n, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    return 2 * n / scale.seconds(lambda: target.copy_(source), repeats=REPEATS) / 1e9
