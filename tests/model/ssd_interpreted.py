"""Run the SSD kernels in Triton's interpreter, which must be chosen before a kernel is defined.

`python -m tests.model.ssd_interpreted NAME...` prints a JSON object: for each case of CASES, the
relative error of each result against the recurrence in float64 and against the chunked scan in the case's
dtype; for `opcheck` and `compile`, what they find; for `names`, the cases.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from jepa_lm.model import ssd_launch as module
from jepa_lm.model.ssd import ssd, ssd_sequential
from jepa_lm.model.ssd_triton import triton_ssd

SMALL = dict(B=1, T=20, H=2, P=3, G=1, N=5, lengths=(16,))
CASES: dict[str, dict[str, Any]] = {
    "shorter than a chunk": SMALL | dict(T=5),
    "one position": SMALL | dict(T=1, state=True),
    "whole chunks": SMALL | dict(T=32, state=True),
    "ragged": SMALL | dict(B=2, T=37, state=True),
    "two groups": SMALL | dict(H=4, G=2, views=True),
    "tiles of a chunk": SMALL | dict(T=70, H=1, lengths=(128,), state=True),
    "smaller tiles inside": SMALL | dict(T=40, H=1, lengths=(64,), inner=16),
    "heads of a group in one program": SMALL | dict(H=4, G=2, programs=1, views=True, state=True),
    "heads shared unevenly": SMALL | dict(B=1, H=3, programs=3),
    "views of one tensor": SMALL | dict(B=2, views=True, state=True),
    "wide": SMALL | dict(H=1, P=24, N=33, state=True),
    "blocks of a state": SMALL | dict(H=1, P=24, N=64, state=True),
    "only outputs are used": SMALL | dict(state=True, used="y"),
    "only the final state is used": SMALL | dict(state=True, used="last"),
    "a gradient without strides": SMALL | dict(used="sum"),
    "float16": SMALL | dict(T=40, H=4, G=2, dtype=torch.float16, state=True, views=True),
    "bfloat16": SMALL | dict(T=40, H=4, G=2, dtype=torch.bfloat16, state=True, views=True),
    "tiles of the published model": SMALL
    | dict(
        T=200, P=64, N=64, lengths=(128,), programs=1, dtype=torch.bfloat16, state=True, views=True
    ),
    "fault in a decay": SMALL | dict(fault="decays"),
    "fault in a state": SMALL | dict(fault="states"),
    "fault in a step's gradient": SMALL | dict(fault="steps"),
}
FAULT = 1.01
NAMES = ("y", "last", "x", "dt", "a", "b", "c", "state")


def arguments(case: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Return x, dt, a, b, c, state in float64, and the weights of y and the final state in a loss."""
    B, T, H, P, G, N = (case[name] for name in "BTHPGN")
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        """Values that the case's dtype holds exactly."""
        return torch.randn(*shape).to(case.get("dtype", torch.float32)).double()

    dt = F.softplus(draw(B, T, H) - 1).float().double()
    a = (-0.1 - 4 * torch.rand(H)).double()
    return (
        [draw(B, T, H, P), dt, a, draw(B, T, G, N), draw(B, T, G, N), draw(B, H, P, N)],
        [draw(B, T, H, P), draw(B, H, P, N)],
    )


def results(
    scan: Callable[..., Any], case: dict[str, Any], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return outputs and gradients of a scan; dtype is that of x, b and c."""
    inputs, weights = arguments(case)
    wide = torch.promote_types(dtype, torch.float32)
    leaves = [v.to(dtype if i in (0, 3, 4) else wide) for i, v in enumerate(inputs)]
    leaves = [v.requires_grad_() for v in leaves[: 6 if case.get("state") else 5]]
    passed = list(leaves)
    if case.get("views"):  # as the model: x, b and c are parts of one projection
        joined = torch.cat([leaves[i].flatten(2) for i in (0, 3, 4)], -1)
        parts = joined.split([leaves[i][0, 0].numel() for i in (0, 3, 4)], -1)
        for i, part in zip((0, 3, 4), parts, strict=True):
            passed[i] = part.unflatten(-1, leaves[i].shape[2:])
    y, last = scan(*passed)
    used = case.get("used", "both")
    loss = torch.zeros((), dtype=wide)
    if used == "sum":
        loss = loss + y.sum()
    if used in ("y", "both"):
        loss = loss + (y * weights[0].to(y.dtype)).sum()
    if used in ("last", "both"):
        loss = loss + (last * weights[1].to(last.dtype)).sum()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return dict(zip(NAMES, (y, last, *gradients), strict=False))


def errors(name: str) -> dict[str, dict[str, float]]:
    """Return the largest error of each result, relative to its largest value, by reference."""
    case = CASES[name]
    dtype = case.get("dtype", torch.float32)
    changes = dict(CHUNK_LENGTHS=case["lengths"])
    changes |= {key.upper(): case[key] for key in ("inner", "programs") if key in case}
    with mock.patch.multiple(module, **changes), planted(case.get("fault")):
        got = results(triton_ssd, case, dtype)
    references = {
        "recurrence": results(ssd_sequential, case, torch.float64),
        "chunked": results(lambda *v: ssd(*v, chunk=16), case, dtype),
    }

    def error(value: Tensor, right: Tensor) -> float:
        assert value.shape == right.shape
        scale = right.abs().max().clamp(min=1e-3)
        return ((value.double() - right).abs().max() / scale).item()

    return {
        reference: {key: error(got[key], right) for key, right in wanted.items()}
        for reference, wanted in references.items()
    }


def planted(fault: str | None) -> Any:
    """Return a context in which one intermediate result is wrong by FAULT."""
    original = {
        "decays": module._log_decays, "states": module._pass_on, "steps": module._step_gradients
    }  # fmt: skip

    def decays(*arguments: Any) -> tuple[Tensor, Tensor]:
        steps, decay = original["decays"](*arguments)
        decay[..., 3] *= FAULT
        return steps, decay

    def states(passed: Tensor, *arguments: Any, **keys: Any) -> Tensor:
        kept = original["states"](passed, *arguments, **keys)
        passed *= FAULT
        return kept

    def steps(dt: Tensor, a: Tensor, steps: Tensor, scalars: Any, kept: Tensor) -> Any:
        reads, *others = scalars
        return original["steps"](dt, a, steps, (reads * FAULT, *others), kept)

    faults = {
        None: {}, "decays": {"_log_decays": decays}, "states": {"_pass_on": states},
        "steps": {"_step_gradients": steps},
    }  # fmt: skip
    return mock.patch.multiple(module, **faults[fault]) if fault else mock.patch.dict({})


def leaves(*, carried: bool) -> list[Tensor | None]:
    inputs = [v.float().requires_grad_() for v in arguments(SMALL)[0]]
    return inputs if carried else [*inputs[:5], None]


def opcheck() -> dict[str, str]:
    """Return what PyTorch's own checks of the operator find, by check."""
    found = {}
    for carried in (False, True):
        checked = torch.library.opcheck(
            torch.ops.jepa_lm.ssd.default, leaves(carried=carried), raise_exception=False
        )
        found |= {f"{key}, carried={carried}": str(value) for key, value in checked.items()}
    return found


def compiled() -> dict[str, bool]:
    """Return whether a compiled step, without a graph break, gives the same gradients."""
    same = {}
    for carried, used in ((False, 0), (True, 0), (True, 1)):
        inputs = leaves(carried=carried)
        given = [v for v in inputs if v is not None]

        def loss(*inputs: Tensor | None, used: int = used) -> Tensor:
            return triton_ssd(*inputs)[used].square().sum()  # type: ignore[arg-type]

        step = torch.compile(loss, fullgraph=True, backend="aot_eager")
        gradients = (torch.autograd.grad(f(*inputs), given) for f in (loss, step))
        same[f"carried={carried}, used={used}"] = all(
            torch.equal(plain, fast) for plain, fast in zip(*gradients, strict=True)
        )
    return same


def repair_interpreter() -> None:
    """Work around two gaps of Triton 3.6's interpreter.

    With NumPy 2.4 a loop's bound cannot be an argument, because int() refuses an array of shape [1]. Products
    of bfloat16 multiply its bits as integers.
    """
    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def widened(handle: Any) -> Any:
        if handle.dtype != tl.bfloat16:
            return handle
        bits = handle.data.view(np.uint16).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, widened(a), widened(b), *others)

    interpreter._patch_lang_tensor = patched
    interpreter.InterpreterBuilder.create_dot = create_dot


if __name__ == "__main__":
    repair_interpreter()
    whole = {"opcheck": opcheck, "compile": compiled, "names": lambda: list(CASES)}
    print(json.dumps({n: whole[n]() if n in whole else errors(n) for n in sys.argv[1:]}))
