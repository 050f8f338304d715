"""What the files of conf/ say of their settings: comments, values and classes; PyTorch is not imported."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from jepa_lm.utils.paths import CONF

ROOT = CONF.parent
PACKAGES = {"objective": "jepa", "debug_sizes": "_global_", "debug_data": "_global_"}
"""Packages of files without a header, where that is not the name of their group."""
WITH_COMMENT = re.compile(r"""((?:[^"'#]|"[^"]*"|'[^']*'|(?<=\S)\#)*?)(?:^|\s)\#\s?(.*)""")


class Entry(NamedTuple):
    """A key of a file: its value as in the file, the class that it builds or "", and its comment or ""."""

    value: str
    target: str
    says: str


class File(NamedTuple):
    """A file: the lines of its comment, its keys by full dotted path, its defaults, the files among these."""

    about: list[str]
    entries: dict[str, Entry]
    defaults: list[str]
    bases: list[Path]


@functools.cache
def read(path: Path) -> File:
    """Return what a file holds."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    split = [WITH_COMMENT.match(line) for line in lines]
    columns = [m.start(2) if m else -1 for m in split]
    alone = [m is not None and not m[1].strip() for m in split]
    first = alone.index(False) if False in alone else len(lines)

    def comment(i: int) -> str:
        """Return the comment beside line i, with the lines that continue it, or else the one above it."""
        start, end = i, i + 1
        if split[i]:
            while end < len(lines) and alone[end] and columns[end] == columns[i]:
                end += 1
        else:
            column, end = len(lines[i]) - len(lines[i].lstrip()) + 2, i
            while start > first and alone[start - 1] and columns[start - 1] == column:
                start -= 1
        return " ".join(m[2] for m in split[start:end] if m)

    def walk(name: str, node: yaml.Node, says: str) -> Iterator[tuple[str, Entry]]:
        if not isinstance(node, yaml.MappingNode):
            value = text[node.start_mark.index : node.end_mark.index]
            if isinstance(node, yaml.SequenceNode) and not node.flow_style:
                value = f"[{', '.join(line.strip(' -') for line in value.strip().splitlines())}]"
            yield name, Entry(" ".join(value.split()), "", says)
            return
        below = {key.value: (value, key.start_mark.line) for key, value in node.value}
        target = below.pop("_target_")[0].value if "_target_" in below else ""
        yield name, Entry("" if node.value or not says else "{}", target, says)
        for key, (value, line) in below.items():
            if key != "defaults":
                yield from walk(f"{name}.{key}".lstrip("."), value, comment(line))

    group = path.relative_to(CONF).parent
    header = re.match(r"# @package (\S+)", text)
    package = header[1] if header else PACKAGES.get(str(group), ".".join(group.parts))
    tree = yaml.compose(text, Loader=yaml.SafeLoader)
    top = "" if package == "_global_" else package
    entries = dict(walk(top, tree, "")) if isinstance(tree, yaml.MappingNode) else {}
    listed = (yaml.safe_load(text) or {}).get("defaults", ())
    names = [x if isinstance(x, str) else "{}: {}".format(*next(iter(x.items()))) for x in listed]
    near = [(CONF if n[0] == "/" else path.parent) / n.split("@")[0].lstrip("/") for n in names]
    return File(
        about=[m[2] for m in split[:first] if m and m[2][:1] != "@"],
        entries=entries,
        defaults=[name.replace("None", "null") for name in names if name != "_self_"],
        bases=[f.with_suffix(".yaml") for f in near if f.with_suffix(".yaml").is_file()],
    )


def family(path: Path) -> list[File]:
    """Return a file and all that it is based on, nearest first."""
    return [read(path), *(file for base in read(path).bases for file in family(base))]


@functools.cache
def class_at(name: str) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a class's docstring, and what the docstring says of each argument.

    Arguments that it does not name are those of the classes that it derives from.
    """
    module, _, title = name.rpartition(".")
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        return "", {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}.get(title)
    if found is None:
        return class_at(imported[title]) if title in imported else ("", {})
    arguments: dict[str, str] = {}
    for base in reversed([ast.unparse(base) for base in found.bases]):
        arguments |= class_at(imported.get(base, f"{module}.{base}"))[1]
    for field, after in itertools.pairwise(
        found.body
    ):  # a dataclass documents its fields one by one
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
            arguments[ast.unparse(field.target)] = " ".join(ast.literal_eval(after.value).split())
    text = ast.get_docstring(found) or ""
    section = " ".join(re.split(r"\n\n(?=\w+:\n|$)", text.partition("Args:\n")[2])[0].split())
    parts = re.split(r"(?:^|(?<=[.:)]) )((?:\w+, )*\w+): ", section)[1:]
    for names, says in zip(parts[::2], parts[1::2], strict=True):
        new = names.split(", ")
        arguments |= {n: says for n in new if n not in arguments or not says.startswith("see ")}
    first = " ".join(text.partition("\n\n")[0].split())
    return first, dict.fromkeys(re.findall(r"`(\w+)`", first), first) | arguments
