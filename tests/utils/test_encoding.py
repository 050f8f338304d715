"""Text files are UTF-8 in any locale: an ASCII terminal must not change what is read or written."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import REPO

PROGRAM = ("jepa_lm", "hydra_plugins", "docs", "benchmarks", ".")
PIPES = {"stdin", "stdout", "capture_output"}


def left_to_the_locale(source: str) -> list[str]:
    """Yield calls that open, read or write text without naming an encoding."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        a_method = isinstance(call.func, ast.Attribute)
        words = {keyword.arg for keyword in call.keywords}
        text = (name in ("read_text", "write_text") and a_method) or bool(
            words & {"text", "universal_newlines"} and words & PIPES
        )
        if name in ("open", "fdopen") and ast.unparse(call.func) != "os.open":  # gives a number
            constants = [node for part in call.args for node in ast.walk(part)]
            text = not any(
                isinstance(node, ast.Constant) and node.value in ("rb", "wb", "ab", "xb", "r+b")
                for node in constants
            )
        if text and "encoding" not in words:
            found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("folder", PROGRAM)
def test_every_text_file_is_opened_with_its_encoding(folder):
    paths = (REPO / folder).glob("*.py" if folder == "." else "**/*.py")
    found = {str(path): left_to_the_locale(path.read_text(encoding="utf-8")) for path in paths}
    assert found
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "path.read_text({})",
        "path.write_text(text, {})",
        "open(path, {})",
        "open(path, 'a', newline='', {})",
        "path.open('w', {})",
        "subprocess.run(command, capture_output=True, text=True, {})",
    ],
)
def test_a_call_without_an_encoding_would_be_found(planted):
    assert left_to_the_locale(planted.format("errors='replace'"))
    assert not left_to_the_locale(planted.format("encoding='utf-8'"))
    assert not left_to_the_locale("open(path, 'ab' if resumed else 'wb')")
