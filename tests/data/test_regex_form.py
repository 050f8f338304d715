"""Normal forms of regular expressions: equal ones mean the same language, and hostile ones cost nothing."""

from __future__ import annotations

import itertools
import random

import pytest

from jepa_lm.data.regex_form import MOST_CHARACTERS, MOST_DEPTH, normal_form, same_regex

SAME = (
    ("a|b|c", "(c|(a))|b"),
    ("(a)&(bc)", "(bc)&a"),
    ("[a-cx]", "[xabc]"),
    ("a|[b-d]", "[a-d]"),
    ("[A-Za-z]&[a-z]", "[a-z]"),
    (".|[0-9]", "."),
    ("(a*)*", "a{0,}"),
    ("(a+)*", "a*"),
    ("(a{1,})", "a+"),
    ("a{1,1}b{1}", "ab"),
    ("~(~(a))", "a"),
    ("~~a", "a"),
    ("((ab)c)", "a(bc)"),
    ("ab|ab", "ab"),
    ("[^a]&[a-b]", "b"),
    (r"\.", "[.]"),
    (r"\d", "[0-9]"),
    ("(([A-Z])&(dog)).*", "((dog)&([A-Z])).*"),
)
OTHER = (
    ("ab", "ba"),
    ("a|bc", "(a|b)c"),
    ("a&b|c", "a&(b|c)"),
    ("ab*", "(ab)*"),
    ("a{2,}", "a{2}"),
    ("a{2,3}", "a{2,4}"),
    ("~ab", "~(ab)"),
    ("(a?)*b", "a*"),
    (r"\b(a|b)\b", r"\ba|b\b"),
    ("a*", "a+"),
    ("(a{2})*", "a*"),
    ("[^ab]", "[ab]"),
)
NONE = (
    "(",
    ")",
    "a)",
    "[a",
    "*a",
    "a{2",
    "a{3,2}",
    "a||)",
    "~",
    "\\",
    "[b-a]",
    "a{,2}",
    "{2}",
    "a{2 }",
)


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_expression(one, other):
    assert same_regex(one, other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_other_expressions(one, other):
    assert None not in (normal_form(one), normal_form(other))
    assert not same_regex(one, other)


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_expression_equals_nothing(text):
    assert normal_form(text) is None
    assert not same_regex(text, text)


def test_hostile_expressions_are_refused_at_once():
    assert normal_form("(" * 100_000) is None
    assert normal_form("(" * (MOST_DEPTH + 1) + "a" + ")" * (MOST_DEPTH + 1)) is None
    assert normal_form("a" * (MOST_CHARACTERS + 1)) is None
    assert normal_form("~" * 1001 + "a") == ("not", ("set", (97, 97)))
    assert normal_form("(" * 20 + "a" + "*)" * 20 + "{999999999}") is not None  # never run
    assert normal_form("a{9999999999}") is None


def language(expression: str) -> frozenset[str]:
    """Return all texts of at most three letters a, b that an expression matches, by sets alone."""
    return _union(expression, [0])


TEXTS = frozenset("".join(t) for n in range(4) for t in itertools.product("ab", repeat=n))


def _union(text: str, at: list[int]) -> frozenset[str]:
    found = _both(text, at)
    while text[at[0] : at[0] + 1] == "|":
        at[0] += 1
        found |= _both(text, at)
    return found


def _both(text: str, at: list[int]) -> frozenset[str]:
    found = _cat(text, at)
    while text[at[0] : at[0] + 1] == "&":
        at[0] += 1
        found &= _cat(text, at)
    return found


def _cat(text: str, at: list[int]) -> frozenset[str]:
    found = frozenset([""])
    while text[at[0] : at[0] + 1] not in ("", "|", "&", ")"):
        inverted = text[at[0]] == "~"
        at[0] += inverted
        if text[at[0]] == "(":
            at[0] += 1
            part = _union(text, at)
        else:
            part = frozenset("ab") if text[at[0]] == "." else frozenset(text[at[0]])
        at[0] += 1
        part = TEXTS - part if inverted else part
        if text[at[0] : at[0] + 1] in ("*", "+"):
            least = text[at[0]] == "+"
            at[0] += 1
            many = part if least else part | {""}
            for _ in range(3):
                many |= frozenset(x + y for x in many for y in part) & TEXTS
            part = many
        found = frozenset(x + y for x in found for y in part) & TEXTS
    return found


def test_equal_forms_mean_equal_languages():
    """Random expressions, by a matcher that knows no laws; many of them have equal forms."""
    draw = random.Random(0)

    def expression(depth: int) -> str:
        kind = draw.randrange(6 if depth else 1)
        if kind == 0:
            return draw.choice("ab.")
        if kind == 1:
            return f"({expression(depth - 1)}){draw.choice('*+')}"
        if kind == 2:
            return f"~({expression(depth - 1)})"
        joined = draw.choice(("|", "&", ""))
        return f"({expression(depth - 1)}){joined}({expression(depth - 1)})"

    languages: dict = {}
    spelled: dict = {}
    for _ in range(3000):
        text = expression(3)
        form = normal_form(text)
        assert languages.setdefault(form, language(text)) == language(text), text
        spelled.setdefault(form, set()).add(text)
    assert sum(len(texts) > 1 for texts in spelled.values()) > 100
