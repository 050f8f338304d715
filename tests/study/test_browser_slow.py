"""The report in a real browser, at desktop and phone width, light and dark; tmp_path keeps screenshots."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.browser import SCHEMES, WIDTHS, browse, browser, found_in
from tests.study.pages import write_report
from tests.study.sweeps import climbing, paired, study

pytestmark = pytest.mark.slow
# Headless Chromium has no window as narrow as a phone, so the page is shown in a frame.
FRAME = """<!doctype html><body style="margin:0"><iframe src="{page}" style="border:0;width:{width}px;
height:{height}px"></iframe><pre id="found"></pre><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const style = page.defaultView.getComputedStyle(page.body);
  const wide = [...page.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, svg") &&
    e.getBoundingClientRect().right > root.clientWidth + 1).map((e) => e.tagName);
  const words = [...page.querySelectorAll("figure :is(span, .label, .numbers, .under, .up)")]
    .filter((e) => e.checkVisibility() && e.textContent.trim());
  const texts = words.map((e) => parseFloat(page.defaultView.getComputedStyle(e).fontSize));
  const cut = words.filter((e) => {{
    const [t, box] = [e, e.closest("figure")].map((e) => e.getBoundingClientRect());
    return t.left < box.left - 1 || t.right > box.right + 1 || t.bottom > box.bottom + 1;
  }}).map((e) => e.textContent);
  const over = [...page.querySelectorAll(".area, .axis")].flatMap((area) => {{
    const boxes = [...area.querySelectorAll("span.x")].map((e) => e.getBoundingClientRect());
    return boxes.slice(1).filter((b, i) => b.left < boxes[i].right - 1).map((b) => b.left);
  }});
  document.querySelector("#found").textContent = JSON.stringify({{
    shown: root.clientWidth, needed: root.scrollWidth, height: root.scrollHeight, wide, cut, over,
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
    assert found["over"] == [], "labels of an axis overlap"
    assert found["smallest"] >= 9, "text in figures is too small to read"
    assert (sum(map(int, re.findall(r"\d+", found["ground"])[:3])) < 200) == (scheme == "dark")
    assert (sum(map(int, re.findall(r"\d+", found["ink"])[:3])) > 500) == (scheme == "dark")
    assert (found["boxes"] > 0) == (device == "phone"), "tables scroll in their own boxes"


DRIVE = """<!doctype html><body style="margin:0"><iframe src="{page}" style="border:0;width:{width}px;
height:900px"></iframe><pre id="found"></pre><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const all = (what, below = page) => [...below.querySelectorAll(what)];
  page.querySelectorAll("details").forEach((e) => {{ e.open = true; }});
  const table = page.querySelector("#arms table"), box = table.closest(".scroll");
  const rows = () => all("tbody tr", table).map((row) => [...row.cells].map((e) => e.textContent));
  const head = all("th button", table).find((e) => e.textContent === "BPB, mean");
  const orders = [rows()], said = [];
  for (let i = 0; i < 3; i++) {{
    head.click();
    orders.push(rows());
    said.push(head.parentElement.getAttribute("aria-sort"));
  }}
  const place = () => all("th:first-child", table).map((e) => Math.round(e.getBoundingClientRect().left));
  const before = place();
  box.scrollLeft = 200;
  const shown = all("figure.wide").map((e) => e.getBoundingClientRect().width);
  document.querySelector("#found").textContent = JSON.stringify({{
    orders, said, before, after: place(), scrolled: box.scrollLeft, needed: root.scrollWidth,
    narrowest: Math.min(...shown), figures: shown.length, widest: Math.max(...shown),
    column: table.querySelector("tbody th").getBoundingClientRect().width,
    folded: all("details").length,
  }});
}};</script></body>"""


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A sweep of 24 weights of two objectives, with a score for each of two seeds."""
    browser()
    scores, settings, against = {}, {}, {}
    for objective in ("lewm", "llm_jepa_with_a_long_name"):
        for i in range(12):
            name = f"objective={objective} jepa.weight={i / 40:g}"
            scores[name] = {"1": 1.7 + 0.001 * (i - 4) ** 2, "2": 1.71 + 0.001 * (i - 5) ** 2}
            settings[name] = {"objective": objective, "jepa.weight": f"{i / 40:g}"}
            if i:
                against[name] = {"weight_0": f"objective={objective} jepa.weight=0"}
    folder = study(
        tmp_path_factory.mktemp("many"), scores, settings=settings, against=against, kind="sweep"
    )
    write_report(folder)
    return folder


@pytest.mark.parametrize("width", [375, 1440])
def test_a_page_of_many_arms(tmp_path, many, width):
    frame = tmp_path / "frame.html"
    frame.write_text(DRIVE.format(page=(many / "report.html").as_uri(), width=width))
    flags = ("--window-size=1500,1000", "--dump-dom")
    found = found_in(browse(tmp_path, frame.as_uri(), "light", *flags))
    assert found["needed"] == width
    written, rising, falling, again = found["orders"]
    scores = [float(row[2]) for row in written]
    assert [float(row[2]) for row in rising] == sorted(scores)
    assert [float(row[2]) for row in falling] == sorted(scores, reverse=True)
    assert sorted(rising) == sorted(written)
    assert again == written
    assert rising != written
    assert found["said"] == ["ascending", "descending", None]
    assert found["after"] == found["before"], "the arm stays where it is"
    assert (
        found["figures"] == 4
    )  # all treatments, two objectives over the weight, all arms over steps
    if width == 1440:
        assert found["narrowest"] >= 900
    else:
        assert found["scrolled"] > 50
        assert found["column"] <= 0.4 * width
        assert found["widest"] <= width

    frame.write_text(FRAME.format(page=(many / "report.html").as_uri(), width=width, height=900))
    fit = found_in(browse(tmp_path, frame.as_uri(), "dark", *flags))
    assert (fit["wide"], fit["cut"], fit["over"]) == ([], [], [])


@pytest.mark.parametrize(("scheme", "width"), [("dark", 375), ("light", 1440)])
def test_the_figures_of_a_ladder_fit(tmp_path, scheme, width):
    """Seven rungs, whose labels are long, of two treatments."""
    effects = {
        name: tuple(0.003 * (i - at) for i in range(7)) for name, at in (("lewm", 0), ("vicreg", 4))
    }
    log_flops = tuple(11.37 + 0.31 * i for i in range(7))
    folder = climbing(tmp_path / "study", effects, seeds=3, log_flops=log_flops)
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=write_report(folder).as_uri(), width=width, height=900))
    dumped = browse(tmp_path, frame.as_uri(), scheme, "--window-size=1500,1000", "--dump-dom")
    fit = found_in(dumped)
    assert (fit["wide"], fit["cut"], fit["over"]) == ([], [], [])
    assert fit["smallest"] >= 9
