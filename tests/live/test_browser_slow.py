"""The live page and a run's page in a real browser, at desktop and phone width."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jepa_lm.live import server as module
from jepa_lm.live import watched
from jepa_lm.live.run_page import keep_page
from jepa_lm.live.server import Server
from jepa_lm.live.watched import Watch
from tests.browser import WIDTHS, browse, browser, found_in
from tests.study.sweeps import write_run

pytestmark = pytest.mark.slow
# Headless Chromium has no window as narrow as a phone, so the page is shown in a frame.
FRAME = """<!doctype html><body style="margin:0"><iframe src="{page}" width="{width}" height="900"
frameborder="0"></iframe><pre id="found"></pre><script src="{script}"></script></body>"""
MEASURE = """
const page = () => document.querySelector("iframe").contentDocument;
const all = (what) => [...page().querySelectorAll(what)];
const text = (what) => all(what).map((e) => e.textContent);
const until = async (check) => {
  for (let i = 0; i < 300 && !check(); i++) await new Promise((done) => setTimeout(done, 50));
};
const fit = () => ({
  needed: page().documentElement.scrollWidth,
  wide: all("body *").filter((e) => !e.closest(".scroll, svg") &&
    e.getBoundingClientRect().right > page().documentElement.clientWidth + 1).map((e) => e.tagName),
  cut: all("#chart text, figure :is(span, p)").filter((e) => {
    const [t, box] = [e, e.closest("svg, figure")].map((e) => e.getBoundingClientRect());
    return t.left < box.left - 1 || t.right > box.right + 1;
  }).map((e) => e.textContent),
});
const tell = (found) => { document.querySelector("#found").textContent = JSON.stringify(found); };
"""
DRIVE = """
onload = async () => {
  await until(() => text("#legend b").length === 2);
  const found = {names: text("#legend b"), rows: text("td.run"), fit: fit()};
  found.lines = all("#chart polyline").length;
  found.before = text("#legend .value");
  await until(() => text("#legend .value").join() !== found.before.join());
  await until(() => text("td.number").includes("1.1250"));
  found.after = text("#legend .value");
  const window_ = document.querySelector("iframe").contentWindow;
  const box = page().querySelector("#chart svg").getBoundingClientRect();
  page().querySelector("#chart svg").dispatchEvent(
    new window_.PointerEvent("pointermove", {clientX: box.left + 60, clientY: box.top + 50}));
  found.hover = text("#legend .value");
  const head = () => all("th button").find((e) => e.textContent === "score");
  head().click();
  found.rising = text("td.run");
  head().click();
  found.falling = text("td.run");
  found.both = text("#samples pre");
  const filter = page().querySelector("#filter");
  filter.value = "LEWM finished";
  filter.dispatchEvent(new window_.Event("input"));
  found.filtered = text("td.run");
  all("tbody input").find((e) => e.checked).click();
  await until(() => all("#chart polyline").length === 1);
  found.fewer = all("#chart polyline").length;
  found.scripts = all("script").map((e) => e.getAttribute("src"));
  tell(found);
};
"""
FIT = "onload = () => tell(fit());"


@pytest.fixture
def logs(tmp_path) -> Path:
    browser()
    finished = write_run(
        tmp_path / "logs" / "sweep" / "jepa.weight-0.3" / "seed-1", 1.6, objective="lewm"
    )
    running = write_run(tmp_path / "logs" / "<script>alert(1)<|script>", None)
    for folder, shift in ((finished, 0.0), (running, 0.2)):
        rows = "".join(f"{s},{3 - s / 200 + shift}\n" for s in range(9, 200, 10))
        (folder / "metrics.csv").write_text("step,val/bpb\n" + rows)
    keep_page(finished, "Anne <b>said</b>", ("it explains a part",), finished=True)
    return tmp_path / "logs"


@pytest.fixture
def served(logs, tmp_path, monkeypatch) -> Iterator[Server]:
    """A server whose page may be framed, and whose running run gets a row at the fifth request."""
    monkeypatch.setattr(module, "NOWHERE", module.NOWHERE.replace("'none'", "'self'"))
    monkeypatch.setattr(module, "LIVE", f"{module.LIVE}frame-src 'self'; ")
    for name, kind in (("frame.html", "text/html"), ("drive.js", "text/javascript")):
        monkeypatch.setitem(module.ASSETS, f"/{name}", (str(tmp_path / name), kind))
    monkeypatch.setattr(watched, "SEARCHED_EVERY", -1.0)
    asked: list[Any] = []
    curves = Watch.curves

    def appending(self: Watch, *arguments: Any) -> dict[str, Any]:
        asked.append(arguments)
        if len(asked) == 5:
            with open(next(logs.glob("<script>*")) / "metrics.csv", "a") as file:
                file.write("399,1.125\n400,1.")
        return curves(self, *arguments)

    monkeypatch.setattr(Watch, "curves", appending)
    with Server(logs, 0) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def framed(tmp_path: Path, page: str, script: str, width: int) -> None:
    (tmp_path / "frame.html").write_text(FRAME.format(page=page, width=width, script="drive.js"))
    (tmp_path / "drive.js").write_text(MEASURE + script)


@pytest.mark.parametrize("device", WIDTHS)
def test_it_follows_sorts_and_filters(tmp_path, served, device):
    framed(tmp_path, "/", DRIVE, WIDTHS[device])
    flags = ("--window-size=1400,1000", "--dump-dom")
    found = found_in(browse(tmp_path, f"{served.url}frame.html", "light", *flags, seconds=25))
    lewm, script = "sweep/jepa.weight-0.3/seed-1", "<script>alert(1)<|script>"
    assert sorted(found["names"]) == ["lewm 0.1 seed 1", "vicreg 0.1 seed 1"]
    assert found["lines"] == 2
    assert len(found["rows"]) == 2
    assert any(row.startswith(script) for row in found["rows"])
    assert found["fit"] == {"needed": WIDTHS[device], "wide": [], "cut": []}
    assert "1.125 at 400" in found["after"]
    assert "1.125 at 400" not in found["before"]
    assert found["hover"] != found["after"]
    assert [row.split()[0] for row in found["rising"]] == [script, lewm]
    assert [row.split()[0] for row in found["falling"]] == [lewm, script]
    assert [row.split()[0] for row in found["filtered"]] == [lewm]
    assert found["both"] == ["Anne <b>said</b>\n"]
    assert found["fewer"] == 1
    assert found["scripts"] == ["/chart.js", "/page.js"]


@pytest.mark.parametrize("device", WIDTHS)
def test_the_page_of_a_run_can_be_read(tmp_path, logs, device):
    (page,) = logs.rglob("run.html")
    framed(tmp_path, page.as_uri(), FIT, WIDTHS[device])
    flags = ("--window-size=1400,1000", "--dump-dom")
    dumped = browse(tmp_path, (tmp_path / "frame.html").as_uri(), "dark", *flags)
    assert found_in(dumped) == {"needed": WIDTHS[device], "wide": [], "cut": []}
