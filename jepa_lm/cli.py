"""The command line: compose the config, call the command, turn errors into one line and an exit code.

Exit codes: 0 success; 2 an error that the user can fix; 3 the artifact exceeds its cap; 4 a rank of a
distributed run was lost; 5 jobs of a sweep failed; 70 a bug in jepa_lm, with its traceback in crash.txt in
the run folder (in logs/ if there is no run folder yet); 128 + n stopped by signal n with the state saved
(130 Ctrl-C, 138 SIGUSR1, 143 SIGTERM).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

try:
    import hydra
except ModuleNotFoundError as error:
    missing = f"error: {sys.executable} has no {error.name}"
    print(f"{missing}; run `make install`, then `source .venv/bin/activate`", file=sys.stderr)
    raise SystemExit(2) from None
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from jepa_lm import run
from jepa_lm.utils import gpus, process, schema
from jepa_lm.utils.command_words import read_arguments
from jepa_lm.utils.crash import MENDABLE, CrashError, bugs_kept
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.explaining import explain, of_a_config
from jepa_lm.utils.finding import AUTO
from jepa_lm.utils.going_on import command_of_run
from jepa_lm.utils.help_page import page
from jepa_lm.utils.output import replace_characters, tell
from jepa_lm.utils.paths import CONF, LOGS, PACKAGE
from jepa_lm.utils.signals import Stopped

TOLD = (*MENDABLE, CrashError)
"""Errors that are printed as one line."""


def train() -> int:
    """`jepa-train`, and `python train.py` in a checkout; returns the exit code."""
    return launch("train")


def evaluate() -> int:
    """`jepa-eval`, and `python eval.py` in a checkout; returns the exit code."""
    return launch("eval")


def export() -> int:
    """`jepa-export`, and `python export.py` in a checkout; returns the exit code."""
    return launch("export")


def launch(command: str) -> int:
    """Compose conf/<command>.yaml with the command line, run the command and return its exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints the error and exits itself
    process.tune()
    replace_characters(sys.stdout)
    if str(PACKAGE.parent) not in sys.path:
        # An editable install: Hydra looks for its plugin, our sweeper, only in the folders of sys.path.
        sys.path.append(str(PACKAGE.parent))
    schema.register()
    returned: list[Exception] = []
    folders: list[Path] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)
    def job(cfg: DictConfig) -> float | None:
        # Hydra's mode does not tell: `study=` and `sweep=` set it in a file that jobs do not read.
        in_sweep = not OmegaConf.is_missing(HydraConfig.get().job, "num")
        if in_sweep:
            schema.register()  # a worker process has not run the code above
        folder = Path(HydraConfig.get().runtime.output_dir)
        if command == "train" and not in_sweep:
            folders.append(folder)
        try:
            with bugs_kept(folder):
                if (
                    in_sweep
                    and HydraConfig.get().runtime.choices["hydra/launcher"] == gpus.LAUNCHER
                ):
                    gpus.claim(Path(HydraConfig.get().sweep.dir))
                return {"train": run.train, "eval": run.evaluate, "export": run.export}[command](
                    cfg
                )
        except TOLD as error:
            if in_sweep:
                tell(f"error: {explain(error, command)[0]}")
                raise  # the sweep counts its failures
            returned.append(error)  # if raised, Hydra would print a second message
            return None

    try:
        with bugs_kept(LOGS):
            asked = read_arguments(command)
            if asked.config_dir is not None:
                import_from(asked.config_dir)
            if asked.help:
                print(page(command))
            else:
                _run(job)
    except TOLD as error:
        returned.append(error)
    except Stopped as stopped:
        tell(f"{stopped}{_goes_on(folders)}")
        return stopped.exit_code
    except KeyboardInterrupt:
        tell(f"interrupted{_goes_on(folders)}")
        return 130
    if not returned:
        return 0
    message, code = explain(returned[0], command)
    tell(f"error: {message}")
    return code


def _goes_on(folders: list[Path]) -> str:
    """Return how to go on with the run in this folder, if there is one; not for torchrun's processes."""
    for folder in folders if "TORCHELASTIC_RUN_ID" not in os.environ else ():
        changes = {"hydra.run.dir": str(folder), "ckpt_path": AUTO}
        if (again := command_of_run(folder, changes)) is not None:
            return f"; to go on: {again}"
    return ""


def _run(job: Callable[[], None]) -> None:
    """Run the job; add the file's name to errors that Hydra raises while it reads a config."""
    try:
        job()
    except TOLD:
        raise
    except Exception as error:
        about_a_config = of_a_config(error)
        if about_a_config is None:
            raise
        raise about_a_config from error


def import_from(config_dir: str) -> None:
    """Let this process, and the ranks and workers that it starts, import the modules in the user's folder.

    Raises:
        UserError: there is no such folder.
    """
    folder = os.path.abspath(config_dir)
    if not os.path.isdir(folder):
        raise UserError(f"--config-dir={config_dir}: no such folder; it holds YAML as conf/ does")
    if folder not in sys.path:
        sys.path.append(folder)  # last: no module of the user's replaces a library's
        known = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{known}{os.pathsep}{folder}" if known else folder
