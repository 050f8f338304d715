"""Write the tables of docs/settings.md from the files of conf/: each setting, its default, kind and meaning.

    python -m docs.settings_page

A kind is that of the table of signatures or of a command's schema. What stands above the marker in the page
is written by hand.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from docs.conf_reader import ROOT, Entry, class_at, family, read
from jepa_lm.utils.command_words import kind_of_setting
from jepa_lm.utils.config import TRAINER
from jepa_lm.utils.files import write_text
from jepa_lm.utils.kinds import kind_of, spell
from jepa_lm.utils.paths import CONF
from jepa_lm.utils.schema import SCHEMAS
from jepa_lm.utils.signatures import table

PAGE = Path(__file__).with_name("settings.md")
MARKER = "<!-- `make settings` writes everything below from conf/ -->\n"
PRESETS = ("experiment", "study", "sweep", "debug", "debug_data", "debug_sizes")
"""Groups whose files set what other files define."""
NAMED = {
    "optimizer.groups.*": "",
    "quantization.rules.*": "jepa_lm.quantization.policy.Rule",
    "study.arms.*": "jepa_lm.study.arms.ArmSpec",
}
"""Mappings whose entries have freely chosen names and the same settings, and the class of an entry."""


def is_preset(path: Path) -> bool:
    """Return whether a file only sets what other files define."""
    return path.relative_to(CONF).parts[0] in PRESETS


def files() -> list[Path]:
    """Return all files: those of the commands, then those that define settings, then presets."""

    def place(path: Path) -> tuple:
        *group, _ = path.relative_to(CONF).parts
        of_a_command = ("train", "eval", "export").index(path.stem) if not group else 3
        return of_a_command, is_preset(path), group, path.stem != "base", path.stem

    return sorted(CONF.rglob("*.yaml"), key=place)


def generic(key: str) -> str:
    """Return a key with `*` in place of the name of an entry of a mapping with freely chosen names."""
    mappings = "|".join(re.escape(name.removesuffix(".*")) for name in NAMED)
    return re.sub(rf"^({mappings})\.\w+", r"\1.*", key)


@functools.cache
def comments() -> dict[str, str]:
    """Return the comments of all settings by key, the first one where several files have one."""
    found: dict[str, str] = {}
    for path in files():
        for key, entry in read(path).entries.items():
            for name in (key, generic(key)) if entry.says else ():
                found.setdefault(name, entry.says)
    return found


@functools.cache
def meanings() -> dict[str, str]:
    """Return what settings mean by key, from the files that define them."""
    defining = [path for path in reversed(files()) if not is_preset(path)]
    found = {key: meaning(path, key) for path in defining for key in read(path).entries}
    return {key: says for key, says in found.items() if says}


def meaning(path: Path, key: str) -> str:
    """Return what a key of a file means; "" if nothing says it.

    It is the key's comment, in the file itself or in one that it is based on; for a part, what the docstring
    of its class says; else what that of the class that takes it says; else its comment elsewhere.
    """
    for file in family(path):
        if key in file.entries and file.entries[key].says:
            return file.entries[key].says
    if is_preset(path):
        key = key.removeprefix("hydra.sweeper.params.")
        if key != "study" and (CONF / key.replace(".", "/")).is_dir():
            return f"choices of the group `{key}`"
    held: dict[str, Entry] = {}
    for file in reversed(family(path)):
        held |= {k: e for k, e in file.entries.items() if e.target or k not in held}
    parent, _, name = key.rpartition(".")
    target = (held[parent].target if parent in held else "") or NAMED.get(generic(parent), "")
    said = class_at(held[key].target)[0] if key in held else ""
    said = said or class_at(target)[1].get(name, "")
    said = said or comments().get(key, "") or comments().get(generic(key), "")
    if not said and is_preset(path):
        said = meanings().get(key, "")
    return re.sub(r"\bNone\b", "null", said)


def kind(path: Path, key: str) -> str:
    """Return what a setting may be, in the words of the messages about wrong values; "" if unknown."""
    parent, _, name = key.rpartition(".")
    if parent == "trainer" and name in TRAINER:
        return spell(kind_of(TRAINER[name]))
    for file in family(path):
        target = file.entries[parent].target if parent in file.entries else ""
        if target in table() and name in table()[target].settings:
            return spell(table()[target].settings[name])
    command = path.relative_to(CONF).parts[0].removesuffix(".yaml")
    found = kind_of_setting(command if command in SCHEMAS else "train", key)
    return "" if found == "any" or isinstance(found, type) else spell(found)


def rows(path: Path) -> Iterator[str]:
    """Yield the table of a file.

    Presets set what other files explain: of such keys, own comments are shown. Of entries of a mapping with
    freely chosen names, the first one explains the settings of all.
    """
    preset = is_preset(path)
    yield "| setting | value | note |" if preset else "| setting | default | values | meaning |"
    yield "| --- | --- | --- |" if preset else "| --- | --- | --- | --- |"
    explained = set()
    for key, entry in read(path).entries.items():
        value = entry.value or entry.target.rpartition(".")[2]
        known = generic(key) in explained or (preset and key in meanings())
        says = entry.says if known else meaning(path, key)
        explained |= {generic(key)} - {key}
        if key and (value or entry.says) and (entry.value or says):
            shown = [f"`{key}`", f"`{value}`" if value else ""]
            words = [says] if preset else [kind(path, key), says]
            cells = [*shown, *(word.replace("<", "&lt;").replace("*", "\\*") for word in words)]
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def section(path: Path) -> Iterator[str]:
    """Yield the part of a file: its heading, its comment, what it starts from, and its table."""
    inside, file = path.relative_to(CONF), read(path)
    group, choice = inside.parent.as_posix(), path.stem
    if group == "objective/recipes":
        group, choice = "objective", f"recipes/{choice}"
    a_choice = group != "." and choice != "base"
    yield f"### `{group}={choice}`" if a_choice else f"### `{path.relative_to(ROOT)}`"
    for a_command, lines in itertools.groupby(file.about, lambda line: line.startswith("  ")):
        words = "\n".join(line.strip() for line in lines)
        yield f"\n```bash\n{words}\n```" if a_command else "\n" + re.sub(r"^(?=#)", r"\\", words)
    if file.defaults:
        yield "\nDefaults: " + ", ".join(f"`{name}`" for name in file.defaults)
    table_of_keys = list(rows(path))
    if len(table_of_keys) > 2:
        yield "\n" + "\n".join(table_of_keys)
    yield ""


def page(text: str) -> str:
    """Return the page with the part below the marker written anew."""
    lines: list[str] = []
    groups: list[str] = []
    for path in files():
        group, *below = path.relative_to(CONF).parts
        if below and group not in groups:
            groups.append(group)
            lines.append(f"## The group `{group}`\n")
        lines += section(path)
    links = ", ".join(f"[{group}](#the-group-{group})" for group in groups)
    lines = [f"Groups: {links}\n", "## The commands\n", *lines]
    return f"{text.partition(MARKER)[0]}{MARKER}\n" + "\n".join(lines)


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
