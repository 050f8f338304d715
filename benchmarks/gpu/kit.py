"""Runs the steps of the kit in order of value until a deadline; a second call goes on where one stopped.

Each step is a process of its own that prints claims; they are appended to the result file as they come,
so that a step that is cut off, or that crashes, loses nothing before it. This process imports neither PyTorch
nor the package, so that it takes no time itself.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.results import Results, table
from benchmarks.gpu.steps import (
    NO_CUDA,
    NO_CUDA_IN_STEP,
    Step,
    end_upon_sigterm,
    end_with_parent,
    run_process,
)
from jepa_lm.utils import process
from jepa_lm.utils.provenance import git_state

if TYPE_CHECKING:
    from benchmarks.gpu.scale import Scale
    from benchmarks.measure import Claim

BUDGET = 530.0


def _of(module: str, seconds: float, *, function: str = "claims", **settings: Any) -> Step:
    """Return a step whose claims come from a function of a module, which is imported when it runs."""

    def claims(scale: Scale) -> Iterator[Claim]:
        yield from getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(scale)

    return Step(claims, seconds, **settings)


def _preset(
    preset: str, seconds: float, *overrides: str, name: str = "", usual: bool = True
) -> Step:
    """Return a step that trains a preset."""

    def claims(scale: Scale) -> Iterator[Claim]:
        from benchmarks.gpu import training

        yield from training.claims(scale, preset, *overrides, name=name)

    return Step(claims, seconds, least=60.0, usual=usual)


STEPS: dict[str, Step] = {
    "hardware": _of("hardware", 180),
    "pr1243": _preset("pr1243_jepardy", 200),
    "pr903_bpe": _preset("pr903_lewm_bpe", 240),
    "pr832": _preset("pr832_byte_chunk", 200),
    "parity": _of("parity", 240, least=40.0),
    "programs": _of("programs", 180, least=60.0),
    "ranks": _of("ranks", 120, least=40.0),
    "pr903_byte": _preset("pr903_lewm_byte", 240),
    "pr1196": _preset("pr1196_llm_jepa", 200),
    "pr1581": _preset("pr1581_span_vicreg", 200),
    "parity_compiled": _of("parity", 300, function="compiled_claims", least=60.0),
    "pr1243_eager": _preset(
        "pr1243_jepardy", 120, "compile=false", name="pr1243_jepardy_eager", usual=False
    ),
    "pr903_bpe_eager": _preset(
        "pr903_lewm_bpe", 120, "compile=false", name="pr903_lewm_bpe_eager", usual=False
    ),
    "pr832_eager": _preset(
        "pr832_byte_chunk", 120, "compile=false", name="pr832_byte_chunk_eager", usual=False
    ),
    "pr903_bpe_mamba_ssm": _preset(
        "pr903_lewm_bpe",
        240,
        "model.kernel=mamba_ssm",
        name="pr903_lewm_bpe_mamba_ssm",
        usual=False,
    ),
}
"""In order of value. The eager variants say what compilation is worth, and the last one what mamba-ssm's
kernels are, where that package is installed; they run when --only names them."""


def main(arguments: list[str], steps: Mapping[str, Step] = STEPS) -> int:
    """Run the kit, or one step of it, and return the exit code.

    Returns:
        0 if every step came to its end and met its claims, 1 if not, 2 without a CUDA device.
    """
    asked = _parser(steps).parse_args(arguments)
    out = Path(asked.out).absolute()
    if asked.step:
        return _be_step(steps[asked.step], out.with_suffix(""), rehearse=asked.rehearse)
    end_upon_sigterm()
    results = Results(out)
    names = asked.only or [name for name, step in steps.items() if step.usual]
    command = [sys.executable, "-m", "benchmarks", "gpu", "--out", str(out)]
    command += ["--rehearse"] if asked.rehearse else []
    if not run(results, {name: steps[name] for name in names}, command, asked.budget):
        print("no CUDA device is available; --rehearse runs the kit on the CPU", file=sys.stderr)
        return NO_CUDA
    return conclude(results, names)


def _parser(steps: Mapping[str, Step]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description="See docs/gpu.md."
    )
    parser.add_argument(
        "--budget", type=float, default=BUDGET, help="seconds after which nothing runs any more"
    )
    parser.add_argument(
        "--out", default="gpu.jsonl", help="result file; a second call continues it"
    )
    parser.add_argument(
        "--only", type=_names_of(steps), help=f"comma-separated steps of {', '.join(steps)}"
    )
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument(
        "--step", choices=steps, help="run this step in this process and print its claims"
    )
    return parser


def _names_of(steps: Mapping[str, Step]) -> Any:
    def names(text: str) -> list[str]:
        found = text.split(",")
        unknown = [name for name in found if name not in steps]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"no step {', '.join(unknown)}; one of {', '.join(steps)}"
            )
        return found

    return names


def _be_step(step: Step, folder: Path, *, rehearse: bool) -> int:
    """Run a step in this process and print its claims."""
    end_with_parent()
    process.tune()  # before PyTorch is imported
    import torch

    from benchmarks.gpu.scale import Scale

    if not rehearse and not torch.cuda.is_available():
        return NO_CUDA_IN_STEP
    for claim in step.claims(Scale("cpu" if rehearse else "cuda", folder)):
        print(json.dumps(claim.as_dict()), flush=True)
    return 0


def run(results: Results, steps: Mapping[str, Step], command: list[str], budget: float) -> bool:
    """Run the steps that the result file lacks, until the budget is used up.

    Args:
        command: runs a step's process when `--step` and a name are added.

    Returns:
        False if there is no CUDA device, so that no step can run.
    """
    deadline, commit = time.monotonic() + budget, _commit()
    for name, step in steps.items():
        if results.has(name):
            continue
        left = deadline - time.monotonic()
        if left < step.least:
            print(f"{name}: not begun, {max(left, 0):.0f} s are left", file=sys.stderr, flush=True)
            continue
        began = time.monotonic()

        def take(line: dict[str, Any], name: str = name) -> None:
            results.add({**line, "step": name, "commit": commit})

        code, why = run_process(
            [*command, "--step", name],
            seconds=min(left, step.seconds),
            log=results.path.with_suffix("") / f"{name}.log",
            take=take,
        )
        if code == NO_CUDA_IN_STEP:
            return False
        took = round(time.monotonic() - began, 1)
        print(f"{name}: {took} s {why}".rstrip(), file=sys.stderr, flush=True)
        results.add({"failed": name, "why": why} if why else {"finished": name, "seconds": took})
    return True


def _commit() -> str:
    """Return the commit of the source, marked if the source has changed since."""
    found = git_state()
    return (found["commit"] or "unknown")[:7] + "+changes" * bool(found["dirty"])


def conclude(results: Results, names: list[str]) -> int:
    """Print the table and what is missing; return 0 if all steps came to their end and met their claims."""
    print(table(results), file=sys.stderr)
    commits = sorted({str(line.get("commit")) for line in results.claims})
    if len(commits) > 1:
        print(f"the figures are of several commits: {', '.join(commits)}", file=sys.stderr)
    missing = [name for name in names if not results.has(name)]
    failed = [line["name"] for line in results.claims if not line["ok"]]
    print(
        f"{len(results.claims)} figures, {len(failed)} claims failed, {len(names) - len(missing)} of "
        f"{len(names)} steps done; {results.path}",
        file=sys.stderr,
    )
    if missing:
        print(f"the same command continues with {', '.join(missing)}", file=sys.stderr)
    return int(bool(missing or failed))
