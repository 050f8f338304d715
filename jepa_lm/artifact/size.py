"""The size account of the challenge: compressed model plus code against 16,000,000 bytes."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import jepa_lm
from jepa_lm.artifact.publishing import CODE, MARK
from jepa_lm.errors import UserError

FULL, MINIFIED = "full", "minified"
CAP_BYTES = 16_000_000
"""The challenge's; export.py can be given another."""


def check_code(name: str) -> None:
    """Refuse what is no way to count code."""
    if name not in (FULL, MINIFIED):
        raise UserError(f"export.code={name}: {FULL} or {MINIFIED}")


def code_bytes(package: Path | None = None) -> int:
    """Bytes of a package's Python source on disk; of this one unless another is named."""
    package = package or Path(jepa_lm.__file__).parent
    return sum(path.stat().st_size for path in package.rglob("*.py"))


def write_minified(folder: Path) -> Path:
    """Write this package, minified, to `folder/code/jepa_lm`; returns that folder."""
    written = folder / CODE / "jepa_lm"
    for path, text in _minified().items():
        (written / path).parent.mkdir(parents=True, exist_ok=True)
        (written / path).write_bytes(text.encode())
    (folder / CODE / MARK).touch()
    return written


def minified_bytes() -> int:
    """Bytes that `write_minified` would write."""
    return sum(len(text.encode()) for text in _minified().values())


def _minified() -> dict[Path, str]:
    """This package's minified source by path in the package."""
    package = Path(jepa_lm.__file__).parent
    return {
        path.relative_to(package): minify(path.read_text(encoding="utf-8"))
        for path in package.rglob("*.py")
    }


@functools.cache
def minify(source: str) -> str:
    """The same program without comments, docstrings and wide indents."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_strings(node)
    wanted = ast.dump(tree)
    plain = ast.unparse(tree)
    narrow = re.sub(r"^(?:    )+", lambda m: " " * (len(m[0]) // 4), plain, flags=re.MULTILINE)
    # A string over several lines would lose spaces of its own.
    return narrow if ast.dump(ast.parse(narrow)) == wanted else plain


def _drop_strings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> None:
    """Take away statements that are nothing but a string: docstrings, also those below attributes."""
    kept = [
        statement
        for statement in node.body
        if not (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
    ]
    node.body = kept or ([] if isinstance(node, ast.Module) else [ast.Pass()])
