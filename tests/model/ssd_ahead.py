"""Compile the SSD kernels ahead of time, on a machine without a GPU, and ask ptxas what they use.

`python -m tests.model.ssd_ahead ARCH... [--shape B T H P G N]` prints a JSON list with an entry per
kernel, set of its constants and architecture (80, 90): registers per thread, bytes spilled, shared memory.
It must not run in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from jepa_lm.model import ssd_launch as module

PUBLISHED = (64, 1024, 20, 64, 1, 64)
"""B, T, H, P, G, N of #903."""
PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


class Call(NamedTuple):
    """A launch that was not made."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    warps: int


def calls(shape: tuple[int, ...], dtype: torch.dtype) -> list[Call]:
    """Return every launch of two passes: one as in training, one with a first and a final state."""
    B, T, H, P, G, N = shape
    made: list[Call] = []

    def launch(
        kernel: Any, programs: int, *arguments: Any, warps: int = 4, **constants: Any
    ) -> None:
        made.append(Call(kernel, arguments, constants, warps))

    with torch.device("meta"), mock.patch.object(module, "_launch", launch):
        joined = torch.empty(B, T, H * P + 2 * G * N, dtype=dtype)
        x, b, c = (v.unflatten(-1, (n, -1)) for v, n in split(joined, H * P, G * N, H, G))
        dt, a = torch.empty(B, T, H), torch.empty(H)
        y, last, states = module.forward(x, dt, a, b, c, None)
        module.backward(x, dt, a, b, c, states, y, None)
        module.forward(x, dt, a, b, c, last)
        module.backward(x, dt, a, b, c, states, y, last)
    return made


def split(joined: Tensor, inner: int, shared: int, H: int, G: int) -> list[tuple[Tensor, int]]:
    """Return the parts of the convolved channels [B, T, C], as `Mamba2Mixer` has them, and their heads."""
    return list(zip(joined.split((inner, shared, shared), -1), (H, G, G), strict=True))


def compiled(call: Call, arch: int) -> dict[str, Any]:
    """Compile a launch as Triton would at run time, and return what ptxas says."""
    signature: dict[str, str] = {}
    constants, attributes = {}, {}
    for i, name in enumerate(call.kernel.arg_names):
        value = call.constants[name] if name in call.constants else call.arguments[i]
        if isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
        elif name in call.constants or value == 1:
            signature[name], constants[(i,)] = "constexpr", value
        else:
            signature[name] = "i32"
        if isinstance(value, Tensor) or (signature[name] == "i32" and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    launch = module.LAUNCHES[call.kernel.__name__]
    kernel = triton.compile(
        ASTSource(call.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options=dict(num_warps=call.warps, num_stages=launch.stages),
    )
    return dict(
        kernel=call.kernel.__name__,
        arch=arch,
        constants=call.constants,
        limit=launch.registers,
        shared=kernel.metadata.shared,
        **assembled(kernel.asm["ptx"], arch),
    )


def assembled(ptx: str, arch: int) -> dict[str, int]:
    """Return registers per thread and bytes spilled."""
    name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(PTXAS), "-v", "--gpu-name", name, file.name, "-o", "/dev/null"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", told)
    spills = re.findall(r"(\d+) bytes spill", told)
    assert registers is not None, told
    assert len(spills) == 2, told
    return dict(registers=int(registers[1]), spilled=sum(map(int, spills)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("arch", type=int, nargs="+")
    parser.add_argument("--shape", type=int, nargs=6, default=PUBLISHED)
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    different = {
        (call.kernel.__name__, str(call.constants)): call
        for call in calls(tuple(given.shape), getattr(torch, given.dtype))
    }
    print(json.dumps([compiled(call, arch) for arch in given.arch for call in different.values()]))
