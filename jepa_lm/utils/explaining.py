"""Explain mistakes on the command line and in YAML: one line with the key, the value and the remedy."""

from __future__ import annotations

import difflib
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import InputDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from jepa_lm.utils.command_words import (
    kind_of_setting,
    one_of_a_group,
    roots,
)
from jepa_lm.utils.crash import MENDABLE, CrashError
from jepa_lm.utils.errors import RankError, UserError, yaml_error
from jepa_lm.utils.kinds import spell
from jepa_lm.utils.nested import flat
from jepa_lm.utils.paths import CONF, INHERITED, options, program
from jepa_lm.utils.quoting import one_line, override
from jepa_lm.utils.schema import SCHEMAS
from jepa_lm.utils.signatures import table
from jepa_lm.utils.unknown_keys import LOSSES, of_another, unknown_key, without_loss

KEY = re.compile(r"[+~]{0,2}[\w@:$-]+([./][\w@:$-]+)*")


def explain(error: BaseException, command: str) -> tuple[str, int]:
    """Return one line that explains an error, and the exit code."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, UserError | RankError | CrashError):
            return one_line(chain), chain.exit_code
        if isinstance(chain, YAMLError):
            return yaml_error(chain), UserError.exit_code
        if isinstance(chain, OverrideParseException):
            return _no_override(chain), UserError.exit_code
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(error), UserError.exit_code
    if "--multirun" in str(error):
        return _list_of_values(error, command)
    twice = re.match(
        r"Multiple values for (\S+)\. To override a value use 'override \S+ (\S+)'", str(error)
    )
    if twice:
        word = "=".join(twice.groups())
        return f"+{word}: has a default already; without the +, {word}", UserError.exit_code
    absent = re.search(r"Could not delete from config\. '([^']+)' does not exist", str(error))
    if absent:
        key = absent.group(1)
        return f"~{key}: {key} is null or not there; set it with {key}=...", UserError.exit_code
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown:
        return _unknown_key(unknown.group(1), command), UserError.exit_code
    elsewhere = re.search(
        r"In '([^']+)': ConfigKeyError .*:\s+Key '([^']+)' not in", str(error), re.S
    )
    if elsewhere:
        file, key = elsewhere.groups()
        return (
            f"{file}.yaml: sets {key}, which {command}.yaml does not have; its first line must say where it "
            "belongs, such as `# @package jepa`"
        ), UserError.exit_code
    cause = error.__cause__ or error
    key = getattr(cause, "full_key", None)
    if isinstance(cause, MissingMandatoryValue):
        hint = "a checkpoint, a run folder, or last" if key == "ckpt_path" else f"{key}=..."
        return f"{key}: not set; give {hint}", UserError.exit_code
    if isinstance(cause, ValidationError) and (told := _wrong_type(str(key), command)):
        return told, UserError.exit_code
    if key and "full_key" in str(cause):  # OmegaConf appends its fields to the message
        reason = one_line(str(cause).split("full_key")[0])
        return _referred_to(cause) or f"{key}: {reason}", UserError.exit_code
    said, file = one_line(str(error) or str(cause)), _file_being_read(error)
    return said if str(error) or file is None else f"{file}: {said}", UserError.exit_code


def _wrong_type(key: str, command: str) -> str | None:
    """Explain the value of an override that the schema refuses; None if no single value was given."""
    given, kind = _given(key), kind_of_setting(command, key)
    if given is None or "," in given or kind == "any":
        return None
    return f"{key}={given}: expected {spell(kind)}"


def _referred_to(error: BaseException) -> str | None:
    """Explain a reference that fails by a value of the command line; None if it is to no such value."""
    key, written = getattr(error, "full_key", None), str(getattr(error, "child_node", ""))
    for name in (word.lstrip("+").partition("=")[0] for word in sys.argv[1:]):
        if name and re.search(rf"[{{, ]{re.escape(name)}[.}}]", f"{written} {error}"):
            return (
                f"{name}={_given(name)}: {key} refers to it ({written}), which needs another value"
            )
    return None


def _given(key: str) -> str | None:
    """Return the value of an override of the command line as it is written; None without one."""
    words = [word.lstrip("+").partition("=") for word in sys.argv[1:]]
    return next((value for name, _, value in reversed(words) if name == key), None)


def of_a_config(error: Exception) -> UserError | None:
    """Return an error with the name of the file that Hydra was reading; None for any other error."""
    file = _file_being_read(error)
    if file is None:
        return None
    said = one_line(error)[:300]
    return UserError(f"{file}: cannot be read ({type(error).__name__}: {said})")


def _file_being_read(error: BaseException) -> str | None:
    """Return the config file that Hydra was reading when it raised an error, if any."""
    file = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith("hydra._internal."):
            held = frame.f_locals
            found = held.get("full_path") or held.get("config_path")
            for node in (held.get("default"), held.get("parent")):
                if found is None and isinstance(node, InputDefault):
                    found = node.get_config_path()
            file = found if isinstance(found, str) and found not in (str(CONF), "") else file
    return file if file is None or file.endswith(".yaml") else f"{file}.yaml"


def _no_override(error: OverrideParseException) -> str:
    """Explain an override that Hydra cannot parse; text with characters of its grammar must be quoted."""
    key, sign, value = error.override.partition("=")
    if not sign:
        return f"{error.override}: a setting is given as key=value"
    if not KEY.fullmatch(key):
        return f"{error.override}: {key} cannot be a key; one is a name such as jepa.weight"
    reason = re.sub(
        r"^Error parsing override .*|See https.*| expecting.*", "", error.message, flags=re.M
    )
    if "LexerNoViableAlt" in reason:
        unclosed = any(value.count(mark) % 2 for mark in "'\"")
        reason = "unclosed quotation mark" if unclosed else "characters that need quotes"
    remedy = f"; to pass it as text: {override(key, value)}"
    return f"{error.override}: cannot be read ({one_line(reason)}){remedy}"


def _list_of_values(error: BaseException, command: str) -> tuple[str, int]:
    """Explain values for several runs; Hydra also complains so if `study=` or `sweep=` do not compose."""
    asked = get_args_parser().parse_args()
    try:
        with _hydra(asked.config_dir) as loader:
            loader.load_configuration(command, overrides=asked.overrides, run_mode=RunMode.MULTIRUN)
    except MENDABLE as cause:
        if "--multirun" not in str(cause):
            return explain(cause, command)
    except Exception as cause:
        return explain(of_a_config(cause) or cause, command)
    word = re.search(r"'([^']+)'", str(error))
    several = word.group(1) if word else "several values"
    key, _, values = several.partition("=")
    if (CONF / key).is_dir() and re.fullmatch(r"[\w/,]+", values):
        return f"{several}: {one_of_a_group(key, values)}", UserError.exit_code
    return (
        f"{several}: more than one run; add -m, or use study= or sweep= with {program('train')}",
        UserError.exit_code,
    )


@contextmanager
def _hydra(config_dir: str | None) -> Iterator[ConfigLoader]:
    """Hydra set up as for this command, including the user's own config folder."""
    GlobalHydra.instance().clear()
    path = create_automatic_config_search_path(None, None, str(CONF))
    if config_dir is not None:
        path.prepend(
            "command-line", f"file://{Path(config_dir).resolve()}", SearchPathQuery("schema")
        )
    Hydra.create_main_hydra2("explaining", path)
    try:
        yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().clear()


def _unknown_key(key: str, command: str) -> str:
    key = key.lstrip("+~")
    root = re.split(r"[./]", key)[0]
    owners = [other for other in SCHEMAS if root in roots(other)]
    if owners and command not in owners:
        named = " and ".join(map(program, owners))
        return f"{key}: a setting of {named}, not of {program(command)}"
    composed = _composed(command, key)
    known = _keys(composed)
    if key in known:
        below = [name for name in known if name.startswith(f"{key}.")]
        if "." in key and below:
            return _new_settings(key, below)
        hint = f"; its settings are {', '.join(below)}" if below else ""
        if key.startswith("jepa/") and "jepa._target_" not in known:
            named = f"{key}={'|'.join(options(key))}"
            hint = f"; objective=none has no parts, choose an objective and then {named}"
        elif "/" in key:
            names = options(key)
            hint = f"; add an option ({', '.join(names)}) with +, such as +{key}={names[0]}"
        return f"{key}: with these choices {command}.yaml has no such group{hint}"
    if "." in key and root in LOSSES and f"{root}._target_" not in known:
        if "," in (swept := _given("objective") or ""):
            return (
                f"{key}: where objective={swept} is swept, only settings of every objective can be given; "
                "put this one into an objective/NAME.yaml of your own (--config-dir FOLDER)"
            )
        instead = root == "jepa" and "tokens._target_" in known
        return str(without_loss(key, _given(key), predicts_tokens=instead))
    path, _, name = key.rpartition(".")
    target = str(composed.get(f"{path}._target_"))
    if (signature := table().get(target)) is not None:
        if name in signature.settings:
            return f"{key}: not set in the files chosen; +{key}=... adds it"
        if (error := of_another(path, name, signature, target.rpartition(".")[2])) is not None:
            return str(error)
    return str(unknown_key(key, known, f"{command}.yaml"))


def _new_settings(key: str, known: list[str]) -> str:
    """Explain that a mapping on the command line changes settings that are there, and adds none."""
    group = key.replace(".", "/")
    instead = f"~{key} +{key}={{...}} replaces the whole of it"
    if (CONF / group).is_dir():
        instead = f"choose {group}={'|'.join(options(group))}, or {instead}"
    return f"{key}: sets more than it has ({', '.join(known)}); {instead}"


def _missing_option(error: MissingConfigException) -> str:
    asked = str(error.missing_cfg_file)
    group, _, option = asked.rpartition("/")
    if group == "hydra/launcher" and option.startswith(("joblib", "submitit")):
        return f"{group}={option}: is not installed; pip install 'jepa_lm[sweep]'"
    names = [name for name in error.options or options(group) if name != INHERITED]
    ours = (CONF / group).is_dir() and not group.startswith("hydra/")
    if ours and names and not (CONF / group / f"{names[0]}.yaml").is_file():
        # An option in a subfolder of its group, such as objective=recipes/pr1006.
        group, _, folder = group.rpartition("/")
        names = [f"{folder}/{name}" for name in options(f"{group}/{folder}")]
        option = f"{folder}/{option}"
    near = difflib.get_close_matches(option, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{group or 'config'}={option}: no such option; {hint}choose one of {', '.join(names)}"


def _composed(command: str, refused: str) -> dict[str, Any]:
    """Return the settings by dotted key, given the groups chosen on the command line but the refused one."""
    asked = get_args_parser().parse_args()
    named = {word: word.partition("=")[0] for word in asked.overrides}
    choices = [word for word, key in named.items() if key != refused and (CONF / key).is_dir()]
    with _hydra(asked.config_dir):
        try:
            cfg = hydra.compose(command, overrides=choices)
        except (HydraException, OmegaConfBaseException):  # a sweep's list of choices, for example
            cfg = hydra.compose(command)
    composed = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(composed, dict)
    return flat(composed)


def _keys(composed: dict[str, Any]) -> list[str]:
    """Return every dotted key, of values and of nodes, and every group."""
    parts = [key.split(".") for key in composed]
    keys = list(dict.fromkeys(".".join(p[:n]) for p in parts for n in range(1, len(p) + 1)))
    groups = (p.relative_to(CONF) for p in CONF.rglob("*") if p.is_dir())
    return keys + [group.as_posix() for group in groups]
