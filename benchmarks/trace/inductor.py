"""The kernels that PyTorch's compiler writes for a full-size step on an H100, and what they would move.

Inductor generates its real Triton code, which nothing compiles or runs; its own estimate says how many
bytes each kernel reads and writes. Matrix products and attention run in libraries: their FLOPs are counted
from their shapes, and their bytes are not. Of the kernels of this package, Mamba-2's scan, the bytes of what
it is given and returns are counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import compile_fx
from torch._inductor import config as inductor
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx import traceback as provenance
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils import _triton

from benchmarks.trace.device import DEVICE, H100
from benchmarks.trace.nodes import (
    ATTENTION,
    SHOWN,
    bytes_of,
    described,
    flops_of,
    inputs_of,
    largest,
    size,
)
from benchmarks.trace.step import Traced, autocast
from jepa_lm.model.layers import RotaryTables

SCAN = "jepa_lm::ssd"
KERNEL = re.compile(
    r"^(triton_\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str='cuda'\)", re.S | re.M
)
GB = re.compile(r"'kernel_num_gb': ([0-9.e+-]+)")
RUN = re.compile(r"(triton_\w+)\.run\(")
LIBRARY = re.compile(r"extern_kernels\.\w+\(|torch\.ops\.(?:aten|jepa_lm)\.\w+")


class _Written(BaseException):
    """Ends a compilation once the code is there; no `except Exception` of the compiler may catch it."""


@dataclass
class Compiled:
    """What the compiler made of a step: graphs of the forward and the backward pass, and their code."""

    graphs: list[GraphModule] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    saved: list[Node] = field(default_factory=list)
    """What the forward pass keeps for the backward pass, beside parameters and inputs."""


def trace(traced: Traced) -> dict[str, Any]:
    """Compile the loss of a step and its gradients; return figures of the kernels.

    Returns:
        `kernels`, distinct ones; `launches`, with those of libraries; `traffic_gb` read and written by them;
        `saved_gb` kept for the backward pass; `product_tflop` of matrix products, `attention_tflop`. For
        a reader also the largest: `heaviest` kernels, `products` by shape, `saved` tensors.
    """
    compiled = compile_step(traced)
    kernels, launches, library = Counter[str](), Counter[str](), 0
    for code in compiled.code:
        gigabytes, runs, calls = read(code)
        for name, count in runs.items():
            kernels[name] += gigabytes[name] * count  # type: ignore[assignment]
        launches, library = launches + runs, library + calls
    nodes = [n for g in compiled.graphs for n in g.graph.nodes if isinstance(n.target, OpOverload)]
    scans = sum(bytes_of(n) for n in nodes if n.target.name().startswith(SCAN)) / 1e9
    products, flops, attention = Counter[str](), Counter[str](), 0
    for node in nodes:
        if count := flops_of(node):
            products[inputs_of(node)] += 1
            flops[inputs_of(node)] += count
            attention += count if node.target.overloadpacket in ATTENTION else 0
    return {
        "kernels": len(launches),
        "launches": sum(launches.values()) + library,
        "traffic_gb": sum(kernels.values()) + scans,
        "saved_gb": sum(size(n.meta["val"]) for n in compiled.saved) / 1e9,
        "product_tflop": (sum(flops.values()) - attention) / 1e12,
        "attention_tflop": attention / 1e12,
        "heaviest": [
            f"{gb:.2f} GB in {launches[k]} of {k}" for k, gb in kernels.most_common(SHOWN)
        ],
        "products": [
            f"{n / 1e12:.3f} TFLOP in {products[k]} of {k}" for k, n in flops.most_common(SHOWN)
        ],
        "saved": [described(node) for node in largest(compiled.saved)],
    }


def read(code: str) -> tuple[dict[str, float], Counter[str], int]:
    """Return what generated code does: GB moved by each kernel, runs of each, and calls of libraries."""
    gigabytes = {
        name: float(found[1]) if (found := GB.search(source)) else 0.0
        for name, source in KERNEL.findall(code)
    }
    rest = KERNEL.sub("", code)
    body = rest[rest.index("def call(") :].partition("def benchmark_compiled_module")[0]
    body = "\n".join(line for line in body.splitlines() if not line.lstrip().startswith("#"))
    return gigabytes, Counter(RUN.findall(body)), len(LIBRARY.findall(body))


def compile_step(traced: Traced) -> Compiled:
    """Let Inductor write its code for the loss of a step and for its gradients."""
    compiled, task = Compiled(), traced.task
    clock, objective = task.clock, task.objective
    tables = _rotary_tables(traced)
    with traced.mode:
        context = traced.drawn()
        named = dict(task.named_parameters()) | dict(task.named_buffers())
        places = {} if context is None else dict(context.places)
        kept = [angles for table in tables for angles in table._tables.values()]

        def loss(values: list[Tensor], batch: Any, kept: list[Any], drawn: list[Any]) -> Tensor:
            left = iter(kept)
            for table in tables:
                table._tables = {key: next(left) for key in table._tables}
            now = context and replace(
                context, places=dict(zip(places, map(tuple, drawn), strict=True))
            )
            with _reparametrize_module(task, dict(zip(named, values, strict=True))), autocast():
                total, _, components = task._losses(batch, now)
                return (
                    total
                    if objective is None
                    else total + objective.total(components["jepa"], clock)
                )

        with _inductor_for_h100(compiled), _named_modules(task):
            joint = aot_function(
                loss,
                fw_compiler=_writer(compiled, backward=False),
                bw_compiler=_writer(compiled, backward=True),
                partition_fn=_partition(compiled),
                decompositions=select_decomp_table(),
            )
            drawn = [list(values) for values in places.values()]
            joint(list(named.values()), dict(traced.batch), kept, drawn).backward()
    return compiled


def _rotary_tables(traced: Traced) -> list[RotaryTables]:
    """Make the rotary tables of all passes of a step, which a compiled loss reads, and return them."""
    task = traced.task
    found: dict[int, RotaryTables] = {}
    with traced.mode:
        backbone, seq_len = task.model.backbone, task.config["data"]["seq_len"]
        backbone.keep_tables(seq_len, DEVICE)
        if task.objective is not None:
            task.objective.keep_tables(backbone, seq_len, DEVICE)
    for module in task.modules():
        found |= {id(x): x for x in vars(module).values() if isinstance(x, RotaryTables)}
    return list(found.values())


# ---- the compiler


@contextmanager
def _inductor_for_h100(compiled: Compiled) -> Iterator[None]:
    """Let Inductor write code without asking or using a GPU, and stop before it is loaded."""
    known: dict[str, Any] = {
        "warp_size": H100["warp_size"],
        "multi_processor_count": H100["multi_processor_count"],
        "regs_per_multiprocessor": H100["regs_per_multiprocessor"],
        "max_threads_per_multi_processor": H100["max_threads_per_multi_processor"],
    }
    device = DeviceProperties(
        type="cuda", index=0, cc=90, major=9, max_threads_per_block=1024, **known
    )

    def written(graph: GraphLowering) -> Any:
        code: Any = graph.codegen()[0]  # text, or with its lines, by the version of PyTorch
        compiled.code.append(getattr(code, "value", code))
        raise _Written

    settings = {
        "shape_padding": False,  # would time products
        "benchmark_kernel": True,  # writes the bytes of each kernel
        "force_disable_caches": True,
        "compile_threads": 1,
        "joint_graph_constant_folding": False,  # would compute
        "triton.cudagraphs": False,
    }
    with ExitStack() as stack:
        stack.enter_context(inductor.patch(settings))
        for where, name, stand_in in (
            (_triton, "triton_hash_with_backend", lambda *args: "none"),
            (_triton, "has_triton", lambda *args, **settings: True),
            (DeviceProperties, "create", classmethod(lambda cls, device_: device)),
            (joint_graph, "lazy_init", lambda *args: None),  # patterns are traced on a device
            (post_grad, "lazy_init", lambda *args: None),
            (GraphLowering, "compile_to_module", written),
            (GraphLowering, "_compile_to_module", written),
            (torch.compiler, "is_compiling", lambda: True),
        ):
            stack.enter_context(mock.patch.object(where, name, stand_in))
        yield


def _writer(compiled: Compiled, *, backward: bool) -> Callable[..., Any]:
    def write(graph: GraphModule, inputs: Any) -> Any:
        try:
            compile_fx.compile_fx_inner(graph, inputs, is_backward=backward)
        except _Written:
            compiled.graphs.append(graph)
        return make_boxed_func(graph.forward)  # on fake tensors, which compute nothing

    return write


def _partition(compiled: Compiled) -> Callable[..., Any]:
    def partition(joint: GraphModule, inputs: Any, **settings: Any) -> Any:
        compile_fx._recursive_joint_graph_passes(joint)
        forward, backward = min_cut_rematerialization_partition(
            joint, inputs, compiler="inductor", **settings
        )
        (output,) = forward.graph.find_nodes(op="output")
        compiled.saved = [
            node
            for node in output.args[0][settings["num_fwd_outputs"] :]
            if isinstance(node, Node)
            and node.op != "placeholder"
            and isinstance(node.meta.get("val"), Tensor)
        ]
        return forward, backward

    return partition


@contextmanager
def _named_modules(root: nn.Module) -> Iterator[None]:
    """Note in each node of the graphs which module it comes from."""
    names = {id(module): name for name, module in root.named_modules()}
    inside: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        inside.append(provenance.annotate({"module": names.get(id(module), "")}))
        inside[-1].__enter__()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        inside.pop().__exit__(None, None, None)

    hooks = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
