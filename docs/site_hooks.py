"""Hooks of mkdocs: README.md is the first page of the site, and pages may link to it and to what it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent


def in_site(text: str) -> str:
    """Return a page's text with links as they are in the site, where README.md is docs/index.md."""
    text = re.sub(r"\]\((?:\.\./)?README\.md", "](index.md", text)
    return re.sub(r"\]\(docs/", "](", text)


def on_files(files: Files, *, config: Any) -> Files:
    """Add README.md as the first page, and the files beside it that it links to."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=in_site(text)))
    for name in set(re.findall(r"\]\(([\w.]+)\)", text)):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrite the links of a page."""
    return in_site(markdown)
