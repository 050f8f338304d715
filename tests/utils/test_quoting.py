"""Text of users, files and models is shown as written, on every route; nothing in it is interpreted."""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
import sys
from html import unescape

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.table import Table

from jepa_lm.artifact import __main__ as artifact_main
from jepa_lm.artifact.card import in_markdown
from jepa_lm.artifact.export_table import print_account
from jepa_lm.evaluation.score_table import print_result
from jepa_lm.training import summary
from jepa_lm.utils import console
from jepa_lm.utils import output as streams
from jepa_lm.utils.crash import command
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.quoting import Formatter, literal, markdown, override, quoted, shell

HOSTILE = (
    '[red]a[/red] \x1b[31m\x1b]0;t\x07 <b>c</b> ${oc.env:HOME} {0} %s `d` | "e" it\'s $(f) \n\r g \u202e '
    "\x9b2J *h* :smile: \\ \u200b \udc80 \ufffe é 日 #"
)
SEEN = (
    '[red]a[/red] \\x1b[31m\\x1b]0;t\\x07 <b>c</b> ${oc.env:HOME} {0} %s `d` | "e" it\'s $(f) \\n\\r g '
    "\\u202e \\x9b2J *h* :smile: \\ \\u200b \\udc80 \\ufffe é 日 #"
)
"""How `HOSTILE` is shown."""


def value(text: str) -> str:
    """Return what Hydra and OmegaConf make of an override's value."""
    found = OverridesParser.create().parse_override(f"k={text}").value()
    return OmegaConf.to_container(OmegaConf.create({"k": found}), resolve=True)["k"]


def test_what_cannot_be_seen_is_seen():
    assert literal(HOSTILE) == SEEN
    assert literal(SEEN) == SEEN
    assert literal("a\n\tb", keep="\n\t") == "a\n\tb"
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"  # Persian needs its joiner
    assert literal(joined) == joined


TEXTS = [
    HOSTILE,
    "",
    "null",
    "1e3",
    "a\\",
    "\\\\'",
    "\\${x}",
    "it's",
    "a,b=c",
    "[x]",
    "{y: 1}",
    "~",
]


@pytest.mark.parametrize("text", TEXTS)
def test_an_override_is_the_text_that_it_was_made_of(text):
    assert value(quoted(text)) == text


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_line_that_is_pasted_gives_the_same_words():
    words = [*TEXTS, "a b", "$HOME", "`touch owned`"]
    line = f"printf '%s\\0' {shell(words)}"
    assert line.isprintable()
    out = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert out.decode(errors="surrogateescape").split("\0")[:-1] == words
    assert override("hydra.sweep.dir", "/tmp/a-1") == "hydra.sweep.dir=/tmp/a-1"
    assert override("k", "it's") == '"k=\\"it\'s\\""'


def test_markdown_shows_it_in_a_paragraph_and_in_a_cell():
    shown = markdown(HOSTILE)
    assert in_markdown(HOSTILE.replace("\n\r", "")) != HOSTILE
    plain = unescape(shown)
    for sign in "\\`*|~":
        plain = plain.replace(f"\\{sign}", sign)
    assert plain.removeprefix("\\") == SEEN
    assert not any(sign in shown for sign in ("<b>", " `d` ", " | ", " *h* ", "$"))
    for start in ("# a", "- a", "1. a", "+ a", "= a", "[x]: y"):
        assert markdown(start).startswith(("\\", "1\\"))


def route_table(text, tmp_path):
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.Screen().print(table, text)


def route_panel(text, tmp_path):
    console.Screen().print(console.panel([text], text, width=900))


def route_bar(text, tmp_path):
    with console.bars("work") as bar:
        bar.add_task(text)
        bar.refresh()


def route_warning(text, tmp_path):
    warn(text)
    streams.say(text)


def route_error(text, tmp_path):
    def fail():
        raise UserError(text)

    assert command(fail) == 2


def route_log(text, tmp_path):
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(message)s"))
    handler.handle(logging.makeLogRecord({"msg": text}))


def route_run(text, tmp_path):
    summary.ERR.print(console.panel([f"continues {text}"], text, expand=False))
    summary.OUT.print(f"written to {text}", soft_wrap=True)


def route_eval(text, tmp_path):
    result = {
        **{
            "source": text,
            "protocol": "standard",
            "seq_len": 8,
            "nll": 1.0,
            "bpb": 1.0,
            "tokens": 1,
        },
        **{"bytes": 1, "temperature": 1, "seconds": 1.0, "max_seconds": 9.0, "text": text},
    }
    print_result(result, tmp_path / text.replace("/", ""))


def route_export(text, tmp_path):
    account = {
        **{"artifact": text.replace("/", ""), "tensors": [], "gptq": None, "codecs": [text]},
        **{"compressors": {text: 1}, "temperature": {}, "round_trip": {}, "bytes": 1, "code": text},
        **{
            "tokenizer_bytes": 0,
            "predicted": {"bytes": 1, "off": 0.0},
            "code_bytes": 1,
            "total": 2,
            "cap": 1,
            "fits": False,
        },
        **{"ways_under": [{"overrides": [text], "total": 1, "bpb_loss": 0.0}]},
    }
    print_account(account, tmp_path)


def route_artifact(text, tmp_path):
    rows = [(text, text)]
    original = artifact_main.contents
    artifact_main.contents = lambda *_: rows
    try:
        assert artifact_main.main(["file"]) == 0
    finally:
        artifact_main.contents = original


ROUTES = {
    name.removeprefix("route_"): f for name, f in globals().items() if name.startswith("route_")
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_terminal_shows_what_was_written_and_obeys_nothing(monkeypatch, tmp_path, route):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat it as a terminal
    ROUTES[route](HOSTILE, tmp_path)
    shown = stream.getvalue()
    # An output that folds its lines, or drops whitespace, still has every part of the text.
    parts = [
        "[red]a[/red]",
        "\\x1b[31m\\x1b]0;t\\x07",
        "${oc.env:HOME}",
        "{0}",
        "%s",
        ":smile:",
        "\\x9b2J",
    ]
    for part in parts:
        assert part in shown.replace("<b>c</b>", "<b>c<b>") or part.replace("/", "") in shown, part
    for code in ("\x1b[31m", "\x1b]", "\x07", "\u202e", "\x9b", "\udc80"):
        assert code not in shown
