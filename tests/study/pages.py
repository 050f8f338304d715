"""Read a report back: its elements in order, its tables as cells."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

from jepa_lm.study.report import tell

VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}


@dataclass
class Element:
    """An element and everything below it."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text below, with whitespace collapsed."""
        shown = (c for c in self.children if isinstance(c, str) or c.tag != "wbr")
        parts = (c if isinstance(c, str) else f" {c.text} " for c in shown)
        return " ".join("".join(parts).split())

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Return the elements below with this tag and, for example, `id="verdict"`."""
        found = []
        for child in self.children:
            if isinstance(child, str):
                continue
            wanted = {key.rstrip("_"): value for key, value in attributes.items()}
            if tag in ("*", child.tag) and wanted.items() <= child.attributes.items():
                found.append(child)
            found += child.all(tag, **attributes)
        return found

    def one(self, tag: str, **attributes: str) -> Element:
        """Return the only such element."""
        (found,) = self.all(tag, **attributes)
        return found

    def tables(self) -> dict[str, list[list[str]]]:
        """Return tables by caption, as rows of cells, headings first."""
        return {
            table.one("caption").text: [
                [cell.text for cell in row.all("*") if cell.tag in ("th", "td")]
                for row in table.all("tr")
            ]
            for table in self.all("table")
            if table.all("caption")
        }


def read(text: str) -> Element:
    """Parse a page; an element that is not closed, or closed twice, is an error."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert [e.tag for e in reader.open] == ["page"], "elements are left open"
    return reader.open[0]


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Return tables as rows of cells, headings first, with escapes undone."""
    tables: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            cells = [_plain(cell) for cell in line.replace("\\|", "\0").strip("|").split("|")]
            if not all(cell.strip("-:") == "" and "---" in cell for cell in cells):
                tables[-1].append(cells)
        before = line
    return tables


def _plain(cell: str) -> str:
    return unescape(re.sub(r"\\([^A-Za-z0-9\s])", r"\1", cell.replace("\0", "|"))).strip()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("page", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        closed = self.open.pop()
        assert closed.tag == tag, f"<{closed.tag}> is closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


AGAINST = {"treatment": {"weight_0": "control"}}
"""The plan of a treatment and its one control."""


@dataclass(frozen=True)
class Report:
    """Both files of a report."""

    folder: Path
    html: str
    markdown: str
    page: Element

    @property
    def verdict(self) -> Element:
        return self.page.one("section", id="verdict")

    @property
    def headline(self) -> str:
        return self.page.one("h1").text

    @property
    def tables(self) -> dict[str, list[list[str]]]:
        return self.page.tables()


def write_report(folder: Path) -> Path:
    """Write both reports and return the HTML file."""
    return tell(folder, lambda text: None)


def report(folder: Path) -> Report:
    """Build a report and read it back."""
    path = write_report(folder)
    assert path == folder / "report.html"
    html = path.read_text()
    return Report(folder, html, (folder / "report.md").read_text(), read(html))
