"""From the command line to a function of the config; errors become one line and an exit code.

0 success, 2 something the user can mend, 3 an artifact over its cap, 4 a rank of a distributed run was
lost, 5 jobs of a sweep failed, 128 + n stopped by signal n (130 Ctrl-C, 138 SIGUSR1, 143 SIGTERM) with
its state saved.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa_lm import gpus, process, run, schema
from jepa_lm.errors import RankError, UserError, disk_error
from jepa_lm.stopping import Stopped

CONF = Path(__file__).resolve().parent.parent / "conf"
ERRORS = (UserError, RankError, HydraException, OmegaConfBaseException)
"""What is told in one line."""


def launch(command: str) -> int:
    """Compose conf/<command>.yaml with the command line, run the command, return its exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print a traceback and exit by itself
    process.tune()
    schema.register()
    returned: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)
    def job(cfg: DictConfig) -> float | None:
        in_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
        if in_sweep:
            schema.register()  # a worker has read none of this
            if HydraConfig.get().runtime.choices["hydra/launcher"] == gpus.LAUNCHER:
                gpus.claim(Path(HydraConfig.get().sweep.dir))
        try:
            return {"train": run.train, "eval": run.evaluate, "export": run.export}[command](cfg)
        except ERRORS as error:
            if in_sweep:
                print(f"error: {_explain(error, command)[0]}", file=sys.stderr)
                raise  # the sweep counts its failures
            returned.append(error)  # Hydra would print a second message for a raised one
            return None

    try:
        job()
    except ERRORS as error:
        returned.append(error)
    except OSError as error:
        about_the_disk = disk_error(error)
        if about_the_disk is None:
            raise
        returned.append(about_the_disk)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if not returned:
        return 0
    message, code = _explain(returned[0], command)
    print(f"error: {message}", file=sys.stderr)
    return code


def _explain(error: BaseException, command: str) -> tuple[str, int]:
    """One line for an error, and the exit code."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, UserError | RankError):
            return _one_line(str(chain)), chain.exit_code
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
        return f"+{word}: there is one by default; without the +, {word}", UserError.exit_code
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown:
        return _unknown_key(unknown.group(1), command), UserError.exit_code
    cause = error.__cause__ or error
    key = getattr(cause, "full_key", None)
    if key and "full_key" in str(cause):  # OmegaConf writes its fields below the message
        reason = _one_line(str(cause).split("full_key")[0])
        return f"{key}: {reason}", UserError.exit_code
    return _one_line(str(error) or str(cause)), UserError.exit_code


def _list_of_values(error: BaseException, command: str) -> tuple[str, int]:
    """Hydra takes a command for a single run whose `study=` or `sweep=` it could not compose."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        words = [word for word in sys.argv[1:] if "=" in word or word.startswith("~")]
        try:
            loader.load_configuration(command, overrides=words, run_mode=RunMode.MULTIRUN)
        except (HydraException, OmegaConfBaseException) as cause:
            if "--multirun" not in str(cause):
                return _explain(cause, command)
    word = re.search(r"'([^']+)'", str(error))
    several = word.group(1) if word else "several values"
    return (
        f"{several}: more than one run; add -m, or a study= or sweep= of train.py",
        UserError.exit_code,
    )


def _unknown_key(key: str, command: str) -> str:
    from jepa_lm.config import unknown_key

    key = key.lstrip("+~")
    known = _all_keys(command)
    if key in known:
        # A group that what else was chosen does not have, or a name with settings below.
        below = [name for name in known if name.startswith(f"{key}.")]
        hint = f"; its settings are {', '.join(below)}" if below else ""
        return f"{key}: with these choices {command}.yaml has no such group to choose from{hint}"
    return str(unknown_key(key, known, f"{command}.yaml"))


def _missing_option(error: MissingConfigException) -> str:
    import difflib

    asked = str(error.missing_cfg_file)
    group, _, option = asked.rpartition("/")
    options = list(error.options or [])
    ours = (CONF / group).is_dir() and not group.startswith("hydra/")
    if ours and options and not (CONF / group / f"{options[0]}.yaml").is_file():
        # An option in a folder of its group: objective=recipes/pr1006.
        group, _, folder = group.rpartition("/")
        options = sorted(f"{folder}/{p.stem}" for p in (CONF / group / folder).glob("*.yaml"))
        option = f"{folder}/{option}"
    near = difflib.get_close_matches(option, options, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{group or 'config'}={option}: no such option; {hint}choose one of {', '.join(options)}"


def _all_keys(command: str) -> list[str]:
    """Every dotted key and every group, with the groups chosen on the command line."""
    choices = [word for word in sys.argv[1:] if (CONF / word.partition("=")[0]).is_dir()]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            cfg = hydra.compose(command, overrides=choices)
        except (HydraException, OmegaConfBaseException):  # a sweep's list of choices, for example
            cfg = hydra.compose(command)
    keys: list[str] = []

    def walk(prefix: str, node: object) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                dotted = f"{prefix}.{name}" if prefix else str(name)
                keys.append(dotted)
                walk(dotted, value)

    walk("", OmegaConf.to_container(cfg, resolve=False))
    groups = (p.relative_to(CONF) for p in CONF.rglob("*") if p.is_dir())
    return keys + [str(group) for group in groups]


def _one_line(message: str) -> str:
    return " ".join(message.split())
