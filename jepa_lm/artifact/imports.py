"""Find the modules of this package that given modules need, by parsing their imports.

Imports inside functions count; imports under TYPE_CHECKING do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import jepa_lm

PACKAGE = jepa_lm.__name__


def needed(roots: Iterable[str]) -> set[Path]:
    """Return the files that importing these modules reads, relative to the package's folder.

    Args:
        roots: dotted names of modules of this package.

    Raises:
        KeyError: a name is not a module of this package.
    """
    folder = Path(jepa_lm.__file__).parent
    files = {_name(path.relative_to(folder)): path for path in folder.rglob("*.py")}
    found: set[str] = set()
    left = [(root, files[root]) for root in roots]
    while left:
        name, path = left.pop()
        if name in found:
            continue
        found.add(name)
        for other in (*_imports(path), name.rpartition(".")[0]):
            if other in files:
                left.append((other, files[other]))
    return {files[name].relative_to(folder) for name in found}


def targets(node: object) -> set[str]:
    """Return the modules of this package whose classes a config names."""
    if isinstance(node, list):
        return {name for value in node for name in targets(value)}
    if not isinstance(node, dict):
        return set()
    found = {name for value in node.values() for name in targets(value)}
    target = node.get("_target_", "")
    if target.startswith(f"{PACKAGE}."):
        found.add(target.rpartition(".")[0])
    return found


def _name(path: Path) -> str:
    parts = [PACKAGE, *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    """Yield dotted names that may be modules."""
    left: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            left.extend(node.orelse)
        else:
            left.extend(ast.iter_child_nodes(node))
