"""Size accounting for the challenge: compressed model plus code must fit in 16,000,000 bytes."""

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
"""Program that loads and scores an artifact."""
CAP_BYTES = 16_000_000
"""Cap set by the challenge; `export.cap_bytes` changes it."""


def check_code(name: str) -> None:
    """Check that `name` is a way to count code bytes."""
    if name not in CODES:
        raise UserError(f"export.code={name}: one of {', '.join(CODES)}")


def code_bytes(package: Path | None = None) -> int:
    """Return the bytes of a package's Python source on disk; None for this package."""
    package = package or Path(jepa_lm.__file__).parent
    return sum(path.stat().st_size for path in package.rglob("*.py"))


def counted_bytes(counted: str, folder: Path, model: dict[str, Any]) -> int:
    """Return the bytes of code that count; code that is not the package as it is goes to `folder` first.

    Args:
        counted: `export.code`. model: the model's config.
    """
    if counted == FULL:
        return code_bytes()
    return code_bytes(
        write_minified(folder, inference_files(model) if counted == INFERENCE else None)
    )


def whole_bytes() -> dict[str, int]:
    """Return the bytes of the whole package in the ways in which it can be counted."""
    return {FULL: code_bytes(), MINIFIED: minified_bytes()}


def inference_files(model: dict[str, Any]) -> set[Path]:
    """Return the files of the package that loading and scoring an artifact of this model imports.

    Args:
        model: the model's config, which names its classes.
    """
    return needed({SCORING, *targets(model)})


def write_minified(folder: Path, files: set[Path] | None = None) -> Path:
    """Write this package, minified, to `folder/code/jepa_lm` and return that folder.

    Args:
        files: files to include, None for all.
    """
    written = folder / CODE / "jepa_lm"
    for path, text in _minified(files).items():
        (written / path).parent.mkdir(parents=True, exist_ok=True)
        (written / path).write_bytes(text.encode())
    (folder / CODE / MARK).touch()
    return written


def minified_bytes(files: set[Path] | None = None) -> int:
    """Return the number of bytes that `write_minified` would write."""
    return sum(len(text.encode()) for text in _minified(files).values())


def _minified(files: set[Path] | None) -> dict[Path, str]:
    """Return this package's minified source by path within the package."""
    package = Path(jepa_lm.__file__).parent
    return {
        path.relative_to(package): minify(path.read_text(encoding="utf-8"))
        for path in package.rglob("*.py")
        if files is None or path.relative_to(package) in files
    }


@functools.cache
def minify(source: str) -> str:
    """Return the same program without comments and docstrings, indented by one space."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_strings(node)
    wanted = ast.dump(tree)
    plain = ast.unparse(tree)
    narrow = re.sub(r"^(?:    )+", lambda m: " " * (len(m[0]) // 4), plain, flags=re.MULTILINE)
    # Narrowing may also change the contents of a multi-line string.
    return narrow if ast.dump(ast.parse(narrow)) == wanted else plain


def _drop_strings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> None:
    """Remove statements that are only a string: docstrings, including those below attributes."""
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
