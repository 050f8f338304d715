"""Files are written whole or not at all, by `jepa_lm.utils.files`; other writes are listed with a reason."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import jepa_lm
from jepa_lm.utils.files import replacing

PACKAGE = Path(jepa_lm.__file__).parent
ALLOWED = {
    "artifact/size.py: write_bytes": "into a staging folder, which is moved as a whole",
    "artifact/size.py: touch": "an empty file in the same staging folder",
    "data/hub_files.py: touch": "a partial file is there to be continued",
    "data/hub_files.py: open": "the same",
    "data/hub_files.py: truncate": "the same",
    "data/rows.py: save": "into a new folder, which is moved as a whole",
    "data/shards.py: touch": "an empty file, whose name is the record",
    "loggers/metrics_csv.py: open": "cuts off a row that a kill left incomplete; rows are appended",
    "loggers/metrics_csv.py: truncate": "the same",
    "loggers/wandb_run.py: copyfile": "a copy in W&B's own folder, made anew by each upload",
    "study/calibrate.py: open": "appends to the log of all trainings",
    "training/callbacks/checkpoints.py: save": "into memory",
    "utils/crash.py: open": "appends: earlier attempts and other ranks may have written there",
    "utils/files.py: copyfile": "a second name of a file, removed after use",
    "utils/files.py: open": "the one place where a file is written",
    "utils/memory.py: write_text": "a switch of the kernel, not a file",
}
METHODS = {"write_text", "write_bytes", "touch", "truncate", "savefig", "tofile", "to_csv"}
OF_MODULES = {
    "torch": {"save"},
    "np": {"save", "savez", "savez_compressed", "savetxt"},
    "json": {"dump"},
    "pickle": {"dump"},
    "yaml": {"dump"},
    "shutil": {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "move"},
    "OmegaConf": {"save"},
}


def raw_writes(source: str) -> Iterator[str]:
    """Yield the name of every call that may write to a file by another way than `jepa_lm.utils.files`."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        if name in ("open", "fdopen"):
            given = [*node.args, *(word.value for word in node.keywords)]
            modes = [ast.unparse(argument) for argument in given]
            if any(_writes(mode) for mode in modes):
                yield name
        elif (owner and name in METHODS) or name in OF_MODULES.get(owner, ()):
            yield name


def _writes(argument: str) -> bool:
    """Return whether an argument of `open` may be a mode for writing."""
    texts = [
        node.value
        for node in ast.walk(ast.parse(argument))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return any(set(text) <= set("rwaxbt+") and set(text) & set("wax+") for text in texts)


def test_every_file_is_written_atomically_or_listed():
    found = Counter(
        f"{path.relative_to(PACKAGE).as_posix()}: {name}"
        for path in PACKAGE.rglob("*.py")
        for name in raw_writes(path.read_text(encoding="utf-8"))
    )
    assert found == Counter(dict.fromkeys(ALLOWED, 1))


@pytest.mark.parametrize(
    "call",
    [
        "open(path, 'w')",
        "open(path, mode='ab' if have else 'wb')",
        "Path(name).open('xb')",
        "path.write_text(text)",
        "(folder / name).write_bytes(data)",
        "torch.save(state, path)",
        "json.dump(value, file)",
        "figure.savefig(path)",
        "shutil.copyfile(a, b)",
        "np.save(path, ids)",
    ],
)
def test_a_planted_raw_write_is_found(call):
    assert list(raw_writes(f"def f(path):\n    return {call}\n"))


@pytest.mark.parametrize(
    "call", ["open(path, 'rb')", "open(path)", "write_text(path, text)", "tokenizer.save(path)"]
)
def test_reading_and_writing_atomically_are_not_raw_writes(call):
    assert not list(raw_writes(call))


def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("earlier")

    def fails():
        with replacing(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]
