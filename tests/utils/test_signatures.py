"""The table of signatures: fresh, complete, and as strict as the classes themselves."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
from hydra.utils import get_object

from jepa_lm.quantization.qat import QATSchedule
from jepa_lm.utils.config import check, check_node, resolve
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.kinds import (
    Count,
    Decay,
    PositiveShare,
    Range,
    bounded,
    check_type,
    checked,
    kind_of,
)
from jepa_lm.utils.paths import CONF
from jepa_lm.utils.signatures import TABLE, TARGET, inspected, table, write

BOUNDED = [
    (name, setting, kind)
    for name, signature in table().items()
    for setting, kind in signature.settings.items()
    if bounded(kind)
]


def test_the_table_is_fresh():
    assert TABLE.read_text(encoding="utf-8") == write(), "run python -m jepa_lm.utils.signatures"


def test_it_holds_every_class_of_ours_that_a_config_names():
    texts = (path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml"))
    named = {name for text in texts for name in TARGET.findall(text)}
    assert named <= table().keys()
    assert len(BOUNDED) > 150


def outside(kind: Any) -> list[Any]:
    """Return values that a kind refuses: next to each end of a range, NaN, an unknown choice."""
    if isinstance(kind, list):
        return [v for option in kind if bounded(option) for v in outside(option)]
    ((name, detail),) = kind.items()
    if name == "one of":
        return ["no such choice", 12345]
    if name == "list":
        return [[value] for value in outside(detail)]
    if name == "mapping":
        return [{"entry": value} for value in outside(detail)]
    step = 1 if name == "int" else 1e-9
    beyond = {"least": -step, "above": 0, "most": step, "below": 0}
    return [math.nan, math.inf, *(end + beyond[which] for which, end in detail.items())]


@pytest.mark.parametrize(("name", "setting", "kind"), BOUNDED, ids=lambda x: str(x)[-40:])
def test_a_value_out_of_range_is_refused_by_the_check_and_by_the_class(name, setting, kind):
    """A tap and the text for tuning are a choice, or a number."""
    either = setting in ("tap", "tuning")
    values = [value for value in outside(kind) if not (either and value == 12345)]
    assert values
    for value in values:
        told = re.escape(f"{setting}={value}: expected ") + ".*"
        if isinstance(value, dict):
            told = re.escape(f"{setting}.entry={value['entry']}: expected ") + ".*"
        for look in ({}, {"find": lambda path, target: get_object(target)}):
            with pytest.raises(UserError, match=rf"^parts\.one\.{told}"):
                check_node("parts", {"one": {"_target_": name, setting: value}}, **look)
        with pytest.raises(UserError, match=f"^{told}"):
            get_object(name)(**{setting: value})


@pytest.mark.slow
def test_every_experiment_is_checked_without_importing_torch():
    """The table must do: importing takes ten times as long as refusing a mistake should."""
    script = """
import sys
from hydra import compose, initialize_config_dir
from jepa_lm.utils import schema
from jepa_lm.utils.config import check, resolve
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.paths import CONF
from jepa_lm.utils.values import check_values
schema.register()
RUN = "paths.run_dir=."
names = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
with initialize_config_dir(str(CONF), version_base="1.3"):
    for name in names:
        config = resolve(compose("train", overrides=[f"experiment={name}", RUN]))
        check(config, imports=False)
        check_values(config)
    for word in ("jepa.weight=-1", "model.backbone.layers=0", "optimizer.schedule.lr.fraction=2",
                 "jepa.distance.reduction=median", "+jepa.wieght=1",
                 "jepa.context._target_=jepa_lm.objective.distances.MSE", "~jepa.target"):
        config = resolve(compose("train", overrides=["objective=vicreg", word, RUN]))
        try:
            check(config, imports=False)
        except UserError as error:
            print(error)
        else:
            raise SystemExit(f"{word}: not refused")
assert len(names) > 5
assert not {"torch", "lightning", "numpy"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "jepa.weight=-1: expected a number of at least 0",
        "model.backbone.layers=0: expected a whole number of at least 1",
        "optimizer.schedule.lr.fraction=2: expected a number from 0 to 1 or null",
        "jepa.distance.reduction=median: expected one of mean, sum",
        "jepa.wieght: LatentPrediction has no such setting; did you mean jepa.weight?",
        "jepa.context._target_=jepa_lm.objective.distances.MSE: not of type Context, which "
        "LatentPrediction expects",
        "jepa.target is not set, and jepa_lm.objective.LatentPrediction needs it",
    ]


@pytest.mark.parametrize(
    ("path", "part", "words"),
    [
        ("jepa.schedule", "jepa_lm.objective.distances.Cosine", "Schedule or null"),
        ("jepa.regularizers.variance", "jepa_lm.objective.views.Suffix", "Regularizer"),
        ("optimizer.schedule.lr", "jepa_lm.model.heads.TiedHead", "Schedule or null"),
        ("jepa.distance", "jepa_lm.schedules.factors.Constant", "Module"),
    ],
)
def test_a_part_of_another_kind_is_refused_with_and_without_the_table(compose, path, part, words):
    config = resolve(compose("train", "objective=vicreg"))
    check(config)
    node = config
    for key in path.split(".")[:-1]:
        node = node[key]
    node[path.rpartition(".")[2]] = {"_target_": part}
    for how in ({}, {"find": lambda path, target: get_object(target)}):
        with pytest.raises(UserError, match=rf"^{path}\._target_={part}: not of type {words},"):
            check_node(path.split(".")[0], config[path.split(".")[0]], **how)


class Own:
    """A class that no table knows, with a range and parts of the table."""

    @checked
    def __init__(self, *, size: Count, pick: Literal["a", "b"] = "a", text: str = "") -> None:
        self.size = size


def test_a_users_own_class_is_inspected():
    node = {"_target_": f"{__name__}.Own", "size": 1}
    check_node("own", node)
    check_node("own", node | {"size": 0}, imports=False)  # only the table is consulted
    with pytest.raises(UserError, match=r"^own\.size=0: expected a whole number of at least 1$"):
        check_node("own", node | {"size": 0})
    with pytest.raises(UserError, match=r"^own\.pick=c: expected one of a, b$"):
        check_node("own", node | {"pick": "c"})
    with pytest.raises(UserError, match=r"^size=0: expected"):
        Own(size=0)
    assert Own(size=2, text=3).size == 2  # types without a range are Python's own matter
    assert inspected(Own).required == ("size",)
    assert list(inspected(Own).settings) == ["size", "pick", "text"]


def test_the_table_makes_no_class_reachable_that_a_files_reader_refuses():
    """With a finder of its own, every target is asked for, whether the table knows it or not."""
    asked = []

    def refuse(path: str, target: Any) -> Any:
        asked.append(target)
        raise UserError(f"{path}: refused")

    for name in table():
        with pytest.raises(UserError, match="part: refused"):
            check_node("part", {"_target_": name}, refuse)
    assert asked == list(table())


@pytest.mark.parametrize(
    ("hint", "right", "wrong", "words"),
    [
        (Count, 1, 0, "a whole number of at least 1"),
        (Count | None, None, 0, "a whole number of at least 1 or null"),
        (Count, 10**30, 1.0, "a whole number of at least 1"),
        (Count, 2, True, "a whole number of at least 1"),
        (Decay, 0, 1, "a number of at least 0 and below 1"),
        (PositiveShare, 1, 0.0, "a number above 0 and at most 1"),
        (Annotated[float, Range(most=3)], -5, 3.5, "a number of at most 3"),
        (Annotated[float, Range(least=-1, most=1)], -1.0, math.nan, "a number from -1 to 1"),
        (Annotated[float, Range(above=0)], 1e300, math.inf, "a number above 0"),
        (Literal["mean", "sum"], "sum", "median", "one of mean, sum"),
        (Literal[0, 1], 0, False, "one of 0, 1"),
        (Literal["norm"] | None, None, "value", "norm or null"),
        (Annotated[str, Literal["a", "b"]], "a", "c", "one of a, b"),
        (list[Count], [1, 2], [1, 0], "a list, each entry a whole number of at least 1"),
        (dict[str, Count], {"x": 1}, 3, "a mapping"),
        (Decay | list[Decay], [0.5], [2], "a number of at least 0 and below 1 or a list, each"),
    ],
)
def test_what_a_hint_accepts_and_how_it_is_said(hint, right, wrong, words):
    check_type("key", right, hint)
    json.dumps(kind_of(hint))  # a kind is plain data
    with pytest.raises(UserError, match=re.escape(f"key={wrong}: expected {words}")):
        check_type("key", wrong, hint)


def test_entries_of_a_mapping_are_named():
    with pytest.raises(UserError, match=r"^key\.x=0: expected a whole number of at least 1$"):
        check_type("key", {"y": 1, "x": 0}, dict[str, Count])


def test_text_where_a_part_belongs_is_one_line():
    """The kind of a part is a class here: neither a number nor a mapping."""
    with pytest.raises(UserError, match=r"^quantization\.training=10: expected .*QATSchedule"):
        check_type("quantization.training", "10", QATSchedule | None)
