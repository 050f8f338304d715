"""Plant faults in a file, one at a time, and list those that its tests do not find.

    python -m tests.mutants jepa_lm/study/verdict.py tests/study/test_verdict.py --most 20

Works in a copy, so the checkout is never changed. A mutant that computes the same as the original
survives rightly; every other survivor is a claim without a test.
"""

from __future__ import annotations

import argparse
import ast
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import REPO

COPIED = ("jepa_lm", "conf", "tests", "docs", "pyproject.toml", "README.md", "CHANGELOG.md")
COMPARED = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}
JOINED = {ast.And: "or", ast.Or: "and"}
COMPUTED = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Pow: "*",
}
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
"""What takes the place of an operator or a function, by what it replaces."""


class Mutant(NamedTuple):
    """A fault: the text of a node, and what is put in its place."""

    line: int
    was: str
    now: str
    source: str
    """The whole file with the fault."""


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every fault that can be planted in a file."""
    tree = ast.parse(source)
    hints = _annotations(tree)
    for node in ast.walk(tree):
        if node in hints:
            continue
        for now in _instead(source, node):
            assert isinstance(node, ast.expr | ast.stmt)
            was = ast.get_source_segment(source, node)
            assert was is not None
            yield Mutant(node.lineno, was, now, _with(source, node, now))


def _annotations(tree: ast.AST) -> set[ast.AST]:
    """Return what is below annotations: it computes nothing."""
    roots = [
        hint
        for node in ast.walk(tree)
        for name in ("annotation", "returns")
        if isinstance(hint := getattr(node, name, None), ast.AST)
    ]
    return {below for root in roots for below in ast.walk(root)}


def _instead(source: str, node: ast.AST) -> Iterator[str]:
    """Yield the texts that may take the place of a node."""

    def text(part: ast.expr) -> str:
        return f"({ast.get_source_segment(source, part)})"

    match node:
        case ast.Compare(left, [op], [right]):
            yield f"{text(left)} {COMPARED[type(op)]} {text(right)}"
        case ast.BoolOp(op, values):
            yield f" {JOINED[type(op)]} ".join(map(text, values))
        case ast.BinOp(left, op, right) if type(op) in COMPUTED:
            yield f"{text(left)} {COMPUTED[type(op)]} {text(right)}"
        case ast.UnaryOp(ast.Not(), operand):
            yield text(operand)
        case ast.UnaryOp(ast.USub(), operand):
            yield text(operand)
        case ast.Constant(bool(value)):
            yield str(not value)
        case ast.Constant(int(value) | float(value)):
            yield f"{value + 1}"
        case ast.Call(ast.Name(name), args) if name in CALLED and args:
            given = ast.get_source_segment(source, node)
            assert given is not None
            yield CALLED[name] + given.removeprefix(name)
        case ast.IfExp(_, body, orelse):
            yield text(body)
            yield text(orelse)
        case ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield "pass"
        case ast.Expr(ast.Call()):
            yield "pass"


def _with(source: str, node: ast.expr | ast.stmt, now: str) -> str:
    """Return the file with a text in place of a node; columns are counted in bytes of UTF-8."""
    lines = source.encode().splitlines(keepends=True)
    assert node.end_lineno is not None
    first, last = node.lineno - 1, node.end_lineno - 1
    before = b"".join(lines[:first]) + lines[first][: node.col_offset]
    after = lines[last][node.end_col_offset :] + b"".join(lines[last + 1 :])
    now = now if isinstance(node, ast.stmt) else f"({now})"
    return (before + now.encode() + after).decode()


def survivors(path: str, tests: list[str], most: int, seed: int) -> list[Mutant]:
    """Run the tests on a sample of mutants, and return those that they pass."""
    source = (REPO / path).read_text(encoding="utf-8")
    found = list(mutants(source))
    chosen = random.Random(seed).sample(found, min(most, len(found)))
    survived = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            place = REPO / name
            (shutil.copytree if place.is_dir() else shutil.copy)(place, copy / name)
        if not _passes(copy, tests):
            raise SystemExit(f"{' '.join(tests)}: fail without a fault, too")
        for mutant in sorted(chosen):
            (copy / path).write_text(mutant.source, encoding="utf-8")
            passed = _passes(copy, tests)
            survived += [mutant] if passed else []
            said = "SURVIVED" if passed else "found"
            print(
                f"{said:8} {path}:{mutant.line}: {mutant.was[:60]!r} -> {mutant.now[:60]!r}",
                flush=True,
            )
    print(f"{len(chosen)} of {len(found)} mutants, {len(survived)} survived")
    return survived


def _passes(folder: Path, tests: list[str]) -> bool:
    words = ["-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, timeout=1800)
    return done.returncode == 0


def main() -> int:
    """Return 0 if every fault was found, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("path", help="file to plant faults in")
    parser.add_argument("tests", nargs="+", help="what should find them")
    parser.add_argument("--most", type=int, default=20, help="sample of the faults")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    asked = parser.parse_args()
    return int(bool(survivors(asked.path, asked.tests, asked.most, asked.seed)))


if __name__ == "__main__":
    sys.exit(main())
