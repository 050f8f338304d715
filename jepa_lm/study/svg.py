"""Turn matplotlib figures into inline SVG with the page's colours and font and with unique ids.

matplotlib does not support CSS, so figures are drawn in placeholder colours that are replaced by CSS
variables here; the page sets the variables for light and dark mode. Text stays text.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from jepa_lm.utils.quoting import literal

INK, MUTED, RULE = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0a0a{i:02x}" for i in range(6))
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)},
}
WIDTH = 285
"""Width of a figure in points: that of a phone, so that text has the same size there as on a desktop."""
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jepa_lm",
    "text.parse_math": False,  # a $ in the name of an arm is literal
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.4,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the settings to everything drawn inside the block; matplotlib's own are restored afterwards."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # The browser draws the text; here it is only measured.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def new_figure(height: float) -> Figure:
    """Return an empty figure of the common width; height in points."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def inline(figure: Figure, name: str, says: str) -> str:
    """Return a figure as an <svg> element.

    Args:
        figure: the finished figure.
        name: prefix of every id, unique on the page.
        says: description of what the figure shows, for readers who cannot see it.
    """
    drawn = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(drawn, format="svg", transparent=True, metadata=no_metadata)
    root = ElementTree.fromstring(drawn.getvalue())
    _without_styles(root)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({k: _adapted(k, v, name) for k, v in attributes.items()})
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": literal(says)}
    return ElementTree.tostring(root, encoding="unicode")


def _without_styles(root: ElementTree.Element) -> None:
    """Remove metadata, and style rules that would apply to the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)


def _adapted(key: str, value: str, name: str) -> str:
    """Return an attribute with the page's colours and font, and with this figure's prefix on ids."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-")
    if key == "clip-path":
        return value.replace("url(#", f"url(#{name}-")
    if key == "style":
        kept = (part for part in value.split("; ") if not part.startswith("font-family"))
        value = "; ".join(kept)
        for colour, variable in VARIABLES.items():
            value = value.replace(colour, variable)
    return value
