"""The words of a command line, before Hydra reads them: its flags, words without a key or a value, values
that Hydra would misread. Each mistake gets one line that shows what was meant.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import os
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.finding import LAST, holds_artifact
from jepa_lm.utils.kinds import kind_of
from jepa_lm.utils.paths import CONF, INHERITED, options
from jepa_lm.utils.quoting import override, shell
from jepa_lm.utils.schema import SCHEMAS

NO_NAME = re.compile(r"null|true|false|[0-9.eE+-]+|\{.*", re.IGNORECASE)
"""Values that cannot be an option of a group."""
NUMBER = re.compile(r"[+-]?[0-9.][0-9.eE+-]*")
KEY = re.compile(r"[A-Za-z_]\w*([./]\w+)*")
FORM = "a setting is given as key=value"
DASHES = "settings are given as key=value without dashes"


def read_arguments(command: str) -> argparse.Namespace:
    """Check the arguments, and move Hydra's flags in front of the overrides, as Hydra requires.

    Raises:
        UserError: an unknown flag, flags that exclude each other, or a malformed override.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; {DASHES}, such as seed=1")

    parser.error = refuse  # type: ignore[method-assign]
    flags, words = _separated(sys.argv[1:], parser)
    asked = parser.parse_args(flags)
    if asked.experimental_rerun is not None:
        raise UserError(
            "--experimental-rerun: would execute a file's contents; give the overrides instead"
        )
    if asked.run + asked.multirun + (asked.cfg is not None) + (asked.info is not None) > 1:
        raise UserError("--run, --multirun, --cfg, --info: use only one of them")
    if asked.resolve and asked.cfg is None:
        raise UserError("--resolve: only works with --cfg")
    check_strays(words, command, several=asked.multirun)
    check_words(words)
    sys.argv[1:] = [*flags, *words]
    return asked


def _separated(
    given: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[str]]:
    """Return the flags with their values, and the other words, both in order.

    Raises:
        UserError: a flag that Hydra does not have.
    """
    known = parser._option_string_actions
    flags, words, left = [], [], list(given)
    while left:
        word = left.pop(0)
        if not re.match(r"--?[A-Za-z]", word):
            words.append(word)
            continue
        name, sign, _ = word.partition("=")
        long = [action for option, action in known.items() if option.startswith(name)]
        action = known.get(name) or (long[0] if len(long) == 1 and word[1] == "-" else None)
        attached = known.get(word[:2])  # as in -cjob
        if action is None and (attached is None or attached.nargs == 0):
            several = not {"-m", "--multirun"}.isdisjoint(given)
            raise UserError(_without_dashes(word, _strays(left), several))
        flags.append(word)
        if action is None or sign or action.nargs == 0:
            continue
        if action.nargs is None and left:
            flags.append(left.pop(0))
        elif action.nargs == "?":  # without a value, argparse would take the next override for one
            flags[-1] += (
                f"={left.pop(0) if left and left[0] in list(action.choices or ()) else action.const}"
            )
    return flags, words


def _without_dashes(word: str, after: list[str], several: bool) -> str:
    """Say what was meant by a flag that there is not.

    Args:
        after: the stray words that follow it.
    """
    key, sign, value = word.lstrip("-").partition("=")
    key = key.replace("-", "_")
    given, values = ([word], [value]) if sign else ([word, *after], after)
    if values:
        meant = _instead(key, values, several)
    else:
        meant = f"write {key}=true" if KEY.fullmatch(key) else "such as seed=1"
    return f"unrecognized arguments: {' '.join(given)}; {DASHES}; {meant}"


def _is_stray(word: str) -> bool:
    """Return whether a word is neither a flag, nor `key=value`, nor `~key`."""
    return "=" not in word and not re.match(r"~|--?[A-Za-z]", word)


def check_strays(words: Sequence[str], command: str, *, several: bool) -> None:
    """Refuse words that are not `key=value`, and say what was meant.

    Args:
        several: the command line asks for several runs (-m).

    Raises:
        UserError: shows the words and the override that was meant.
    """
    for i, word in enumerate(words):
        after = list(words[i + 1 :])
        if re.fullmatch(r"[^=]+=", word) and after and _is_stray(after[0]):
            values = _strays(after)
            raise _spaces([word, *values], word[:-1], values, several)
        if not _is_stray(word):
            continue
        if after and after[0].startswith("="):
            more = _strays(after[1:])
            values = [value, *more] if (value := after[0][1:]) else more
            raise _spaces([word, after[0], *more], word, values, several)
        before = words[i - 1] if i else ""
        raise UserError(_meant(word, _strays(after), before, command, several))


def _strays(words: Sequence[str]) -> list[str]:
    """Return the stray words at the beginning."""
    return list(itertools.takewhile(_is_stray, words))


def _spaces(given: list[str], key: str, values: list[str], several: bool) -> UserError:
    instead = _instead(key, values, several) if values else f"write {key}=..."
    return UserError(f"{' '.join(given)}: {FORM}, without spaces; {instead}")


def _meant(word: str, after: list[str], before: str, command: str, several: bool) -> str:
    """Say what was meant by a word without `=`.

    Args:
        after: the words of this sort that follow it. before: the word in front of it.
    """
    said = " ".join([word, *after])
    if _is_key(word, command):
        if after:
            return f"{said}: {FORM}; {_instead(word, after, several)}"
        if options(word):
            return f"{word}: {FORM}; choose {word}={'|'.join(options(word))}"
        value = "true" if "bool" in _kinds(command, word) else "..."
        return f"{word}: {FORM}; write {word}={value}"
    if before:
        key, _, value = before.partition("=")
        return f"{before} {said}: {_instead(key, [value, word, *after], several)}"
    if word == LAST or ({"/", "."} & set(word) and os.path.exists(os.path.expanduser(word))):
        key = (
            "artifact_path"
            if command == "eval" and holds_artifact(Path(word).expanduser())
            else "ckpt_path"
        )
        return f"{word}: {FORM}; write {override(key, word)}"
    if after and KEY.fullmatch(word):
        return f"{said}: {FORM}; {_instead(word, after, several)}"
    groups = [group for group in main_groups(command) if word in options(group)]
    if groups:
        return f"{word}: {FORM}; write {' or '.join(f'{group}={word}' for group in groups)}"
    return f"{word}: {FORM}, such as seed=1" if command == "train" else f"{word}: {FORM}"


def _instead(key: str, values: list[str], several: bool) -> str:
    """Say how to write a value, or what several words mean: several values, or a text with spaces."""
    if len(values) == 1:
        return f"write {override(key, values[0])}"
    if several or all(NUMBER.fullmatch(text) for text in values):
        listed = shell([f"{key}={','.join(text.strip(',') for text in values)}"])
        return (
            f"the values of several runs have commas between them: {'-m ' * (not several)}{listed}"
        )
    return f"a text with spaces needs quotes: {override(key, ' '.join(values))}"


def _is_key(word: str, command: str) -> bool:
    return KEY.fullmatch(word) is not None and re.split(r"[./]", word)[0] in roots(command)


def _kinds(command: str, key: str) -> list[str]:
    """Return the simple kinds of a setting; none if the schema does not know it."""
    kind = kind_of_setting(command, key)
    return [k for k in (kind if isinstance(kind, list) else [kind]) if isinstance(k, str)]


def kind_of_setting(command: str, key: str) -> typing.Any:
    """Return the kind of a setting of a command's own schema; "any" if it is not one of them."""
    hint: typing.Any = SCHEMAS[command]
    for name in key.split("."):
        if not dataclasses.is_dataclass(hint):
            return "any"
        hint = typing.get_type_hints(hint, include_extras=True).get(name, typing.Any)
    return kind_of(hint)


def roots(command: str) -> set[str]:
    """Return the first words of a command's keys: of its settings and of its config groups."""
    return {f.name for f in dataclasses.fields(SCHEMAS[command])} | {*main_groups(command), "hydra"}


def check_words(words: Iterable[str]) -> None:
    """Refuse overrides that Hydra would misread, or reject without naming them.

    Raises:
        UserError: names the override.
    """
    for word in words:
        key, sign, value = word.partition("=")
        key = key.lstrip("+")
        if not sign or key.startswith("~"):
            continue
        if not key:
            raise UserError(f"{word}: the key is missing; an override is key=value")
        if not value.strip():
            raise UserError(
                f"{word}: the value is missing; null unsets a setting, and empty text is {override(key, '')}"
            )
        if value == INHERITED and (CONF / key / f"{INHERITED}.yaml").is_file():
            raise UserError(
                f"{word}: only for the others to inherit; choose one of {', '.join(options(key))}"
            )
        if (CONF / key).is_dir() and value.startswith("["):
            raise UserError(f"{word}: {one_of_a_group(key, value.strip('[]'))}")
        if (CONF / key).is_dir() and NO_NAME.fullmatch(value):
            removed = f"; ~{key} removes this part" if "/" in key else ""
            raise UserError(
                f"{word}: choose one of {', '.join(options(key))}, or leave this override out{removed}"
            )
        group = key.replace(".", "/")
        if "." in key and (value in options(group) or group in ("hydra/launcher", "hydra/sweeper")):
            raise UserError(f"{word}: this is a config group; write {group}={value}")


def one_of_a_group(group: str, values: str) -> str:
    """Explain that several options of a group are several runs."""
    together = "logger=many logs to all of them; " * (group == "logger")
    listed = values.replace(" ", "")
    return f"a group takes one option; {together}-m {group}={listed} starts one run for each"


@functools.cache
def main_groups(command: str) -> list[str]:
    """Return the config groups of a command, in the order of its list of defaults."""
    found = re.findall(r"^  - (\w+):", (CONF / f"{command}.yaml").read_text(encoding="utf-8"), re.M)
    return [group for group in found if group != "hydra" and (CONF / group).is_dir()]
