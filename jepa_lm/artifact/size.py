"""The size account of the challenge: compressed model plus code against 16,000,000 bytes."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any

import jepa_lm
from jepa_lm.artifact.imports import needed, targets
from jepa_lm.artifact.publishing import CODE, MARK
from jepa_lm.utils.errors import UserError

FULL, MINIFIED, INFERENCE = "full", "minified", "inference"
CODES = (FULL, MINIFIED, INFERENCE)
SCORING = "jepa_lm.artifact.score"
"""The program that loads an artifact and scores it."""
CAP_BYTES = 16_000_000
"""The challenge's; export.py can be given another."""


def check_code(name: str) -> None:
    """Refuse what is no way to count code."""
    if name not in CODES:
        raise UserError(f"export.code={name}: one of {', '.join(CODES)}")


def code_bytes(package: Path | None = None) -> int:
    """Bytes of a package's Python source on disk; of this one unless another is named."""
    package = package or Path(jepa_lm.__file__).parent
    return sum(path.stat().st_size for path in package.rglob("*.py"))


def inference_files(model: dict[str, Any]) -> set[Path]:
    """What loading an artifact of this model and scoring it reads of the package.

    Args:
        model: the model's config, which names the classes it is built of.
    """
    return needed({SCORING, *targets(model)})


def write_minified(folder: Path, files: set[Path] | None = None) -> Path:
    """Write this package, minified, to `folder/code/jepa_lm`; returns that folder.

    Args:
        files: only these, None for all.
    """
    written = folder / CODE / "jepa_lm"
    for path, text in _minified(files).items():
        (written / path).parent.mkdir(parents=True, exist_ok=True)
        (written / path).write_bytes(text.encode())
    (folder / CODE / MARK).touch()
    return written


def minified_bytes(files: set[Path] | None = None) -> int:
    """Bytes that `write_minified` would write."""
    return sum(len(text.encode()) for text in _minified(files).values())


def _minified(files: set[Path] | None) -> dict[Path, str]:
    """This package's minified source by path in the package."""
    package = Path(jepa_lm.__file__).parent
    return {
        path.relative_to(package): minify(path.read_text(encoding="utf-8"))
        for path in package.rglob("*.py")
        if files is None or path.relative_to(package) in files
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
