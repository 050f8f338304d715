"""Fill in templates of pages: text from any source is escaped, and its invisible characters are shown."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from jepa_lm.utils.quoting import literal, markdown

TIED = "\N{NO-BREAK SPACE}"


@cache
def environment(folder: Path | None = None, *, html: bool) -> Environment:
    """Return Jinja's environment for the templates of this folder, and before them those of `folder`.

    It is made once: Jinja compiles a template for a tenth of a second, and keeps it in its environment.

    Args:
        html: escape text for HTML; in Markdown, the template does it.
    """
    made = Environment(
        loader=FileSystemLoader([*filter(None, [folder]), Path(__file__).parent]),
        undefined=StrictUndefined,
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    if html:  # in Markdown, macros return lines that must stay as they are
        made.finalize = _visible
    made.filters |= {"md": markdown, "tied": _tied, "breakable": _breakable}
    return made


def _visible(value: Any) -> Any:
    """Escape invisible characters in plain strings; markup comes from this package and stays."""
    return literal(value) if type(value) is str else value


def _tied(text: str) -> str:
    """Prevent line breaks inside `p = 0.01` and `95 %`."""
    text = re.sub(r"\b([pn]) ([=<]) (?=[0-9])", rf"\1{TIED}\2{TIED}", text)
    return re.sub(r"(?<=[0-9]) %", f"{TIED}%", text)


def _breakable(text: str) -> Markup:
    """Allow line breaks after the signs within a name such as `lewm/prediction_only`."""
    return Markup(
        re.sub(r"(?<=[/_=])(?=\w)|(?<=\.)(?=[^\W\d])", "<wbr>", str(escape(literal(text))))
    )
