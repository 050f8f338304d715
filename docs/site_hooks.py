"""Hooks of mkdocs: README.md is the first page, and what pages link to outside docs/ joins the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # tests/test_docs.py reads the links without mkdocs
    from mkdocs.structure.files import Files

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
CODE = re.compile(r"^```.*?^```|`[^`]*`", re.MULTILINE | re.DOTALL)


def in_site(text: str) -> str:
    """Return a page's text with links as they are in the site.

    The checkout and its docs/ are one folder there, and README.md is index.md.
    """
    return re.sub(r"\]\((\.\./|docs/)", "](", text).replace("](README.md", "](index.md")


def links(text: str) -> Iterator[tuple[str, str]]:
    """Yield the file and the anchor, each perhaps empty, of a page's links that are not absolute."""
    for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", text)):
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            yield file, anchor


def from_root() -> dict[str, Path]:
    """Return what the site has from outside docs/, by its name there: README.md, and what is linked to."""
    found = {"index.md": ROOT / "README.md"}
    pages = [*found.values(), *DOCS.glob("*.md")]
    for page in pages:  # grows
        for name, _ in links(in_site(page.read_text(encoding="utf-8"))):
            path = ROOT / name
            if name not in found and path.is_file() and not (DOCS / name).exists():
                found[name] = path
                pages += [path] if path.suffix == ".md" else []
    return found


def on_files(files: Files, *, config: Any) -> Files:
    """Add the files of `from_root`."""
    from mkdocs.structure.files import File

    for name, path in from_root().items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrite the links of a page."""
    return in_site(markdown)
