"""Line styles of arms: none is there twice unless the page says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from jepa_lm.study.chart import INK, SERIES
from jepa_lm.study.figure_styles import DISTINCT, styles
from jepa_lm.study.results import collect
from jepa_lm.study.sections import sections
from tests.study.sweeps import study


def test_other_controls_have_colours_and_dashes_while_they_last(tmp_path):
    scores = {name: {"1": 1.7} for name in ("treatment", "none", "same", "placebo", "other")}
    against = {"treatment": {"none": "none", "placebo": "placebo", "other": "other"}}
    folder = study(tmp_path, scores, against=against, identities=((("2", "1"), "same"),))
    look = styles(collect(folder))
    assert {name: (s.colour, bool(s.dash)) for name, s in look.items()} == {
        "treatment": (SERIES[0], False),
        "none": (INK, False),
        "same": (INK, True),
        "placebo": (SERIES[1], True),
        "other": (SERIES[2], True),
    }
    assert list(look) == list(scores)
    assert look["placebo"].dash != look["other"].dash


def many(folder: Path, treatments: int, controls: int) -> Path:
    """Write a study of this many treatments with this many controls each, and one that they share."""
    against = {f"t{i}": {f"r{k}": f"t{i}r{k}" for k in range(controls)} for i in range(treatments)}
    names = ["none", *against, *(arm for found in against.values() for arm in found.values())]
    against = {name: {"none": "none", **found} for name, found in against.items()}
    return study(folder, {name: {"1": 1.7} for name in names}, against=against)


@pytest.mark.parametrize(("treatments", "controls"), [(6, 3), (3, 9), (25, 0), (11, 3)])
def test_no_two_arms_look_the_same(tmp_path, treatments, controls):
    results = collect(many(tmp_path, treatments, controls))
    look = styles(results)
    assert len({(style.colour, style.dash) for style in look.values()}) == len(results.arms)
    for i in range(treatments if controls == 3 else 0):
        assert {look[f"t{i}r{k}"].colour for k in range(3)} == {look[f"t{i}"].colour}
    (section,) = (s for s in sections(results, look) if "BPB over steps" in s.title)
    assert "line styles" not in section.says


def test_styles_that_repeat_are_said_to(tmp_path):
    results = collect(many(tmp_path, DISTINCT + 2, 0))
    look = styles(results)
    assert len({(style.colour, style.dash) for style in look.values()}) == DISTINCT
    (section,) = (s for s in sections(results, look) if "BPB over steps" in s.title)
    assert f"only {DISTINCT} line styles for {DISTINCT + 3} arms" in section.says
