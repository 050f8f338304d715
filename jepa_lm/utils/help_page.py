"""The page that `--help` prints: examples, flags, and the config groups with the options that `conf/` has."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from jepa_lm.utils.command_words import main_groups
from jepa_lm.utils.paths import CONF, called, options
from jepa_lm.utils.quoting import shell

WIDTH = 100
NARROW = 14
"""Of the column of groups: most names are shorter, and the lists beside it are long."""
"""Columns of the page."""
ABOUT = {
    "train": (
        "Trains a small language model, with or without a latent loss (JEPA), and scores it in bits",
        "per byte. The run's records and checkpoints are written to logs/train/runs/TIME/.",
    ),
    "eval": (
        "Scores a checkpoint or an exported file in bits per byte, on the whole validation split of",
        "its run, and writes eval.json.",
    ),
    "export": (
        "Writes a checkpoint as one compressed file, compares its bytes with the cap, and scores it in",
        "a fresh process.",
    ),
}
EXAMPLES = {
    "train": {
        "": "1000 steps on the novels",
        "objective=vicreg jepa.weight=0.1": "with a latent loss",
        "data=text data.path=README.md": "on your own text",
        "model=mamba2 model.backbone.layers=4": "another backbone",
        "optimizer.groups.matrices.lr=0.01": "the learning rate of Muon",
        "trainer=gpu trainer.max_steps=5000": "on one GPU, for 5000 steps",
        "experiment=pr1581_span_vicreg debug=tiny": "a published system, shrunk",
        "describe=true": "show sizes, train nothing",
        "ckpt_path=last": "resume the latest run",
        "-m seed=1,2,3": "three runs, with a report",
        "study=ablation objective=lewm 'seed=range(1,6)'": "against its controls",
    },
    "eval": {
        "ckpt_path=last": "the latest run",
        "ckpt_path=logs/train/runs/TIME": "a run, or one of its checkpoints",
        "artifact_path=last": "the latest export",
        "artifact_path=last eval=sliding eval.stride=64": "the score of the challenge",
        "ckpt_path=last eval=stream": "Mamba-2 in one pass",
        "artifact_path=last data.path=README.md": "on a text of your own",
        "ckpt_path=last eval.temperature=0.95": "another temperature",
        "ckpt_path=last device=cuda devices=8": "eight GPUs",
        "ckpt_path=last logger=wandb": "also to W&B",
    },
    "export": {
        "ckpt_path=last": "quantized as in training",
        "ckpt_path=last quantization=int6": "other number formats",
        "ckpt_path=last quantization=int4_gptq": "GPTQ on training text",
        "ckpt_path=last +quantization/gptq=own": "GPTQ on its own text",
        "ckpt_path=last temperature=search": "with a fitted temperature",
        "ckpt_path=last export.code=inference": "count less code",
        "ckpt_path=last export.cap_bytes=8000000": "a smaller cap",
        "ckpt_path=last 'export.protocols=[standard,sliding]'": "score in two ways",
        "ckpt_path=last -m quantization=int8,int6,int5": "several exports",
    },
}
"""Words of example commands, with what they do."""
PARTS = {"objective": "jepa"}
"""Groups whose parts are the groups below another name."""
ALSO = {"objective": "tokens"}
"""Groups that have the options of another group as well, where they are shown."""
LAUNCHER = "hydra/launcher"
LAUNCHERS = ("basic*", "joblib", "submitit_local", "submitit_slurm")
"""Hydra's own launcher and those of the extra `sweep`."""
FLAGS = {
    "-m": "one run for each of several values: key=a,b",
    "--cfg job": "print all settings; with --resolve, references as values",
    "--config-dir FOLDER": "also read your own YAML files",
    "--hydra-help": "the flags of Hydra",
}


def page(command: str) -> str:
    """Return the page of a command: at most 60 lines of 100 columns."""
    start = shell(called(command))
    examples = {f"{start} {words}".rstrip(): said for words, said in EXAMPLES[command].items()}
    return "\n".join(
        [
            f"{start} [FLAG ...] [KEY=VALUE ...]",
            *ABOUT[command],
            "",
            "Examples:",
            *_columns(examples),
            "",
            "Choices, as GROUP=OPTION (* by default; +GROUP=OPTION adds a part, ~GROUP removes one):",
            *_columns(dict(_groups(command)), NARROW),
            "",
            "Flags:",
            *_columns(FLAGS),
            "docs/settings.md lists the settings, and conf/ holds them with comments."
            if start.startswith("python")
            else f"{CONF} holds all settings with comments.",
        ]
    )


def _columns(rows: dict[str, str], most: int = WIDTH) -> Iterator[str]:
    """Yield lines of two columns; a left side of over `most` characters shifts its own first line."""
    widest = min(max(map(len, rows)), most) + 4
    for left, right in rows.items():
        begins = f"  {left}".ljust(widest)
        begins += " " * (2 * (not begins.endswith("  ")))
        yield textwrap.fill(
            right,
            WIDTH,
            initial_indent=begins,
            subsequent_indent=" " * widest,
            break_on_hyphens=False,
            break_long_words=False,
        )


def _groups(command: str) -> Iterator[tuple[str, str]]:
    """Yield the config groups of a command with their options."""
    for group in main_groups(command):
        yield from _with_parts(group, command)
        if group in PARTS:
            yield from (row for part in _folders(CONF / PARTS[group]) for row in _named(part))
    yield LAUNCHER, ", ".join((*LAUNCHERS, *options(LAUNCHER)))


def _with_parts(group: str, command: str) -> Iterator[tuple[str, str]]:
    folder, default = CONF / group, _default(group, command)
    within = [f for f in _folders(folder) if _is_of_its_parent(f)]
    elsewhere = set(options(CONF / ALSO[group])) - {default} if group in ALSO else set()
    found = [o for o in options(folder) if o not in elsewhere]
    found += [f"{f.name}/{o}" for f in within for o in options(f)]
    if found != [default]:
        yield group, ", ".join(f"{o}*" if o == default else o for o in found)
    for part in _folders(folder):
        if part not in within:
            yield from _named(part)


def _named(folder: Path) -> Iterator[tuple[str, str]]:
    yield str(folder.relative_to(CONF)), ", ".join(options(folder))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _is_of_its_parent(folder: Path) -> bool:
    """Return whether a folder only sorts options of the group above it, whose package its files name."""
    return all(
        p.read_text(encoding="utf-8").startswith("# @package") for p in folder.glob("*.yaml")
    )


def _default(group: str, command: str) -> str | None:
    defaults = (CONF / f"{command}.yaml").read_text(encoding="utf-8")
    found = re.search(rf"^  - {group}: (\w+)", defaults, re.M)
    return found[1] if found else None
