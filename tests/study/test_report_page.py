"""The page of a report: headings, links to runs, samples of text, and what only a page of many arms has."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from jepa_lm.study.report import LONG
from jepa_lm.study.results import collect
from tests.study.pages import AGAINST, Element, Report, report
from tests.study.sweeps import paired, study

SAMPLE = "It is a <b>truth</b>\n\x1b[31muniversally & |acknowledged|.\n" * 100


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Report:
    """Five objectives with four arms each, and one control for all."""
    seeds = ("1", "2", "3")
    scores = {"none": {s: 1.7 + 0.01 * int(s) for s in seeds}}
    against, settings = {}, {}
    for i in range(5):
        name = f"objective-{i}"
        arms = {
            role: f"{name}/{role}" for role in ("placebo", "prediction_only", "regularizers_only")
        }
        for k, arm in enumerate((name, *arms.values())):
            scores[arm] = {s: b + 0.001 * (i - 3) * (k + int(s)) for s, b in scores["none"].items()}
            settings[arm] = {"objective": name}
        against[name] = {"none": "none", **arms}
    folder = tmp_path_factory.mktemp("long")
    return report(study(folder, scores, against=against, settings=settings))


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Report:
    folder = study(tmp_path_factory.mktemp("short"), paired(1.7, -0.01), against=AGAINST)
    (folder / "1" / "run.html").write_text("<p>")
    (folder / "1" / "sample.txt").write_text(SAMPLE)
    return report(folder)


def levels(page: Element) -> list[int]:
    return [int(e.tag[1]) for e in page.all("*") if re.fullmatch("h[1-6]", e.tag)]


def test_headings_do_not_jump(long, short):
    for made in (long, short):
        found = levels(made.page)
        assert found[0] == 1
        assert found.count(1) == 1
        assert all(b <= a + 1 for a, b in pairwise(found))


def test_every_figure_is_told_in_numbers(long, short):
    for made in (long, short):
        shown = made.page.all("div", role="img")
        assert len(shown) > 4
        for figure in shown:
            assert re.search(r": [+-]?\d+\.?\d*", figure.attributes["aria-label"])


def test_the_challenges_rule_is_explained_where_its_p_stands(long, short):
    for made in (long, short):
        section = made.page.one("section", id="differences")
        assert "p of the challenge's rule" in section.all("table")[0].text
        assert "at least 0.005 nats per token, at p < 0.01" in section.text
        assert "one-sided paired t-test" in section.text
        assert "one-sided paired t-test" in made.markdown


def test_runs_are_linked_and_samples_shown(short):
    section = short.page.one("section", id="samples-of-text")
    (link,) = section.all("a")
    assert (link.text, link.attributes["href"]) == ("seed 2", "1/run.html")
    text = section.one("pre").text
    assert text.startswith(r"It is a <b>truth</b> \x1b[31muniversally & |acknowledged|.")
    assert text.endswith("...")
    assert 300 < len(text) < 700
    assert not section.all("b")
    assert "> It is a &lt;b&gt;truth&lt;/b&gt;\n" in short.markdown
    hashes = short.page.one("section", id="versions-and-records").all("table")[1]
    assert [a.attributes["href"] for a in hashes.all("a")][:3] == ["0/", "1/run.html", "2/"]


def test_addresses_are_quoted(tmp_path):
    folder = study(tmp_path, {"a": {"1": 1.7, "2": 1.8}}, kind="sweep")
    odd = 'x="1" &<b>#?%20:é'
    (folder / "0").rename(folder / odd)
    plan = (folder / "study.json").read_text(encoding="utf-8")
    plan = plan.replace('"folder": "0"', '"folder": "x=\\"1\\" &<b>#?%20:é"')
    plan = plan.replace('"1": "0"', '"1": "x=\\"1\\" &<b>#?%20:é"')
    (folder / "study.json").write_text(plan, encoding="utf-8")
    links = [a.attributes["href"] for a in report(folder).page.all("a")]
    assert links[:2] == ["x%3D%221%22%20%26%3Cb%3E%23%3F%2520%3A%C3%A9/", "1/"]


def test_a_page_of_many_arms_has_contents(long, short):
    assert not short.page.all("nav")
    links = long.page.one("nav").all("a")
    places = {e.attributes["id"] for e in long.page.all("*") if "id" in e.attributes}
    assert {a.attributes["href"].removeprefix("#") for a in links} <= places
    sections = [e.attributes["id"] for e in long.page.all("section")]
    assert [a.attributes["href"] for a in links][1:] == [f"#{name}" for name in sections[1:]]


def test_it_folds_what_is_long_and_keeps_every_verdict_in_sight(long, short):
    assert not short.page.all("details")
    folded = {e.one("summary").text: e for e in long.page.all("details")}
    treatments = collect(long.folder).treatments
    summaries = [card.one("summary").text for card in long.verdict.all("details")]
    assert summaries == [f"{t.word} {t.arm.label}" for t in treatments]
    assert len(summaries) == 5
    assert {"How the configs differ", "Versions and records", "BPB of every run"} <= folded.keys()
    assert any(name.startswith("10 more figures") for name in folded)
    arms = long.page.one("section", id="arms")
    assert arms.all("table")[0] not in [t for e in arms.all("details") for t in e.all("table")]


def test_its_script_is_its_own_and_alone(long, short):
    assert not short.page.all("script")
    (script,) = long.page.all("script")
    assert script.attributes == {}
    assert not re.search(r"https?:|//[a-z]|fetch|import|XMLHttp|innerHTML|eval", script.children[0])
    for element in long.page.all("*"):
        assert not [key for key in element.attributes if key.startswith("on") or key == "src"]
    assert len(long.page.all("button")) == 0, "without the script, nothing can be pressed"


def test_long_begins_at_twenty_arms(tmp_path):
    for arms in (LONG - 1, LONG):
        scores = {f"a{i}": {"1": 1.7} for i in range(arms)}
        made = report(study(tmp_path / str(arms), scores, kind="sweep"))
        assert bool(made.page.all("nav")) == (arms == 20)
