"""Descriptions and expressions: distinct, divided, by seed, with one reading each."""

from __future__ import annotations

import numpy as np
import pytest

from jepa_lm.data.regex_form import normal_form
from jepa_lm.data.synthetic.regexes import CLAUSES, JOINS, RegexPairs, described, distinct
from jepa_lm.utils.errors import UserError


def pairs(split: str, **more) -> list[tuple[str, str]]:
    settings = {"train_pairs": 300, "val_pairs": 100, "longest": 128, "seed": 0} | more
    found = RegexPairs(**settings).conversations(split)
    return [(question.text.decode(), answer.text.decode()) for question, answer in found]


def test_training_and_validation_are_distinct_and_a_function_of_the_seed():
    train, val = pairs("train"), pairs("val")
    assert (len(train), len(val)) == (300, 100)
    assert len({question for question, _ in train + val}) == 400
    assert pairs("train") == train
    assert pairs("train", seed=1) != train
    assert max(len(q) + len(a) + 2 for q, a in pairs("train", longest=80)) <= 80


def test_a_description_has_one_reading_and_its_expression_parses():
    rng, readings = np.random.default_rng(0), {}
    for _ in range(5_000):
        question, answer = described(rng)
        assert readings.setdefault(question, answer) == answer
    forms = {answer: normal_form(answer) for answer in readings.values()}
    assert None not in forms.values()
    assert len(readings) > 3_000
    said = " ".join(readings)
    assert all(f" {clause} " in said for clause, _ in CLAUSES)
    assert all(join in said for join, _ in JOINS)


def test_descriptions_by_hand():
    found = dict(distinct(20_000, 128, 0))
    assert found["lines containing a vowel"] == ".*([AEIOUaeiou]).*"
    assert found["lines with nothing but a character and the string 'dog'"] == "(.)&(dog)"
    assert found["lines not containing a letter or a number"] == "~(.*(([A-Za-z])|([0-9])).*)"


def test_too_few_pairs_are_told():
    with pytest.raises(UserError, match=r"^data\.corpus\.source: the grammar has hardly more than"):
        distinct(50, 24, 0)
