"""The report in a real browser, at desktop and phone width, light and dark; tmp_path keeps screenshots."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.browser import SCHEMES, WIDTHS, browse, browser, found_in
from tests.study.pages import write_report
from tests.study.sweeps import paired, study

pytestmark = pytest.mark.slow
# Headless Chromium has no window as narrow as a phone, so the page is shown in a frame.
FRAME = """<!doctype html><body style="margin:0"><iframe src="{page}" style="border:0;width:{width}px;
height:{height}px"></iframe><pre id="found"></pre><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const style = page.defaultView.getComputedStyle(page.body);
  const wide = [...page.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, svg") &&
    e.getBoundingClientRect().right > root.clientWidth + 1).map((e) => e.tagName);
  const texts = [...page.querySelectorAll("figure svg text")].map((e) =>
    parseFloat(page.defaultView.getComputedStyle(e).fontSize) *
    Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b));
  const cut = [...page.querySelectorAll("figure svg")].filter((svg) => {{
    const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].some((e) => {{
      const t = e.getBoundingClientRect();
      return t.left < box.left - 1 || t.right > box.right + 1 || t.bottom > box.bottom + 1;
    }});
  }}).map((svg) => svg.getAttribute("aria-label"));
  document.querySelector("#found").textContent = JSON.stringify({{
    shown: root.clientWidth, needed: root.scrollWidth, height: root.scrollHeight, wide, cut,
    smallest: Math.min(...texts), ground: style.backgroundColor, ink: style.color,
    boxes: [...page.querySelectorAll(".scroll")].filter((e) => e.scrollWidth > e.clientWidth).length,
  }});
}};</script></body>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A study with long names, three controls and a failed run."""
    browser()
    scores = paired(1.7, -0.012)
    name = "objective=vicreg jepa.weight=0.1"
    scores = {
        "control: weight 0": scores["control"],
        name: scores["treatment"],
        "control: regularizers only": {s: b - 0.004 for s, b in scores["control"].items()},
        "control: placebo": {s: b + 0.001 * int(s) for s, b in scores["control"].items()},
    }
    controls = dict(
        zip(
            ("weight_0", "regularizers_only", "placebo"),
            (n for n in scores if n != name),
            strict=True,
        )
    )
    differences = {"jepa.weight": (0.0, 0.1), "jepa.predictor": (None, {"hidden": [256] * 20})}
    folder = study(
        tmp_path_factory.mktemp("browser"),
        scores,
        against={name: controls},
        differences=differences,
        planned={name: ("6",)},
    )
    write_report(folder)
    return folder


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("device", WIDTHS)
def test_it_can_be_read(tmp_path, folder, device, scheme):
    width = WIDTHS[device]
    page = tmp_path / "frame.html"
    report = (folder / "report.html").as_uri()
    page.write_text(FRAME.format(page=report, width=width, height=800))
    dumped = browse(tmp_path, page.as_uri(), scheme, "--window-size=1400,900", "--dump-dom")
    found = found_in(dumped)
    page.write_text(FRAME.format(page=report, width=width, height=found["height"]))
    picture = tmp_path / f"report_{device}_{scheme}.png"
    size = f"--window-size={max(width, 500)},{found['height']}"
    browse(tmp_path, page.as_uri(), scheme, size, f"--screenshot={picture}")
    assert picture.stat().st_size > 50_000
    assert found["shown"] == width
    assert found["needed"] == width, f"wider than the screen: {found['wide']}"
    assert found["wide"] == []
    assert found["cut"] == []
    assert found["smallest"] >= 9, "text in figures is too small to read"
    assert (sum(map(int, re.findall(r"\d+", found["ground"])[:3])) < 200) == (scheme == "dark")
    assert (sum(map(int, re.findall(r"\d+", found["ink"])[:3])) > 500) == (scheme == "dark")
    assert (found["boxes"] > 0) == (device == "phone"), "tables scroll in their own boxes"
