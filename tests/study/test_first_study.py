"""The first study's words under today's rules, from the scores that docs/log.md lists."""

from __future__ import annotations

import math
import re

import pytest

from jepa_lm.study.family import adjust
from jepa_lm.study.statistics import effect
from jepa_lm.study.verdict import claim, verdict
from tests.conftest import REPO
from tests.study.sweeps import NATS

ROW = re.compile(r"^\| ([\w/]+) \| \d\.\d{4} \| 0\.\d{4} \| ((?:\d\.\d{4} \| ){4}\d\.\d{4}) \|$")
GATES = {
    "vicreg": ("placebo", "regularizers_only"),
    "patch": ("placebo", "regularizers_only"),
    "lewm": ("placebo", "regularizers_only"),
    "chunk": ("placebo", "regularizers_only", "no_module"),
    "llm_jepa": ("placebo",),
}
BASELINES = {"chunk": ("weight_0", "chunk/injection_only")}


@pytest.fixture(scope="module")
def scores() -> dict[str, dict[str, float]]:
    lines = (REPO / "docs/log.md").read_text(encoding="utf-8").splitlines()
    found = (match for line in lines if (match := ROW.match(line)))
    return {
        match[1]: {str(seed): float(x) for seed, x in enumerate(match[2].split(" | "), start=1)}
        for match in found
    }


def test_the_words_and_why(scores):
    def between(ours, theirs):
        nll = [{seed: NATS * x for seed, x in scores[arm].items()} for arm in (ours, theirs)]
        margin = 0.005 / NATS
        pair = dict(nll_treatment=nll[0], nll_control=nll[1], margin=margin)
        return effect(scores[ours], scores[theirs], **pair)

    effects = {}
    for name, gates in GATES.items():
        role, baseline = BASELINES.get(name, ("none", "none"))
        effects[name] = {role: between(f"{name}/treatment", baseline)}
        for gate in gates:
            arm = gate if gate in scores else f"{name}/{gate}"
            effects[name][gate] = between(f"{name}/treatment", arm)
    family = adjust({name: claim(found, GATES[name]) for name, found in effects.items()})
    said = {
        name: verdict(found, GATES[name], family[name], 0.05, too_little="")
        for name, found in effects.items()
    }
    assert {name: found.word for name, found in said.items()} == {
        "vicreg": "no difference shown",
        "patch": "no difference shown",
        "lewm": "no difference shown",
        "chunk": "equivalent",
        "llm_jepa": "hurts",
    }
    assert family["lewm"].difference == pytest.approx(0.080, abs=0.001)
    assert "not shown to come from the predicted latents" in said["vicreg"].sentence
    assert math.isclose(effects["vicreg"]["none"].mean, -0.0032, abs_tol=5e-5)
