"""Does this instrument say yes where the answer is yes? `python -m jepa_lm.study.calibrate --out FOLDER`.

Trains small models whose comparison has a known outcome, judges them as every study is judged, and exits with
1 if a verdict is not the known one:

    teacher      the latents of a better model lower the score (2605.11513): helps
    law          the exact law of a hidden Markov chain does, too: helps
    placebos     the teacher's and the law's, held against no objective: no difference either way
    noise        random tokens in the input, where text is scarce (2606.16246): better; it has no placebo
    same         one config against itself with other seeds: no difference either way
    fewer steps  ten percent fewer steps: hurts

Then a ladder, which decides nothing: teachers that read less and less text, down to the student's own.
It takes up a folder where an earlier start of it was interrupted.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jepa_lm.study.arm_result import ArmResult
from jepa_lm.study.results import Results, collect
from jepa_lm.study.runs import Run
from jepa_lm.study.sentences import numbers
from jepa_lm.study.treatments import judged
from jepa_lm.utils.crash import command
from jepa_lm.utils.errors import UserError, warn
from jepa_lm.utils.files import read_json, write_json, write_text
from jepa_lm.utils.output import tell
from jepa_lm.utils.parser import Parser
from jepa_lm.utils.paths import LOGS
from jepa_lm.utils.quoting import value_of

GAIN, BETTER, HARM = ("helps",), ("better, no placebo",), ("hurts",)
NEITHER = ("equivalent", "no difference shown")
SETTINGS = "settings.json"
SEEDS = 3
"""Pairs of seeds of each control: the known effects are about ten times the spread."""


@dataclass(frozen=True)
class Known:
    """A comparison whose outcome is known.

    Args:
        study: folder of its study. treatment, against: names of arms; of the placebo, the second name.
        words: verdicts that are right.
    """

    name: str
    study: str
    words: tuple[str, ...]
    treatment: str = "treatment"
    against: str = ""


STUDIES: dict[str, tuple[str, ...]] = {
    "teacher": (
        "study=controls",
        "experiment=scarce",
        "objective=distil",
        "study.estimand=best",
        "jepa.target.path={teacher}",
    ),
    "law": (
        "study=controls",
        "experiment=known_law",
        "objective=oracle_law",
        "study.estimand=best",
    ),
    "noise": (
        "study=noise",
        "experiment=scarce",
        "objective=none",
        "data.noise=0.15",
        "trainer.max_steps=1000",
        "study.estimand=best",
    ),
    "same": ("study=same", "experiment=scarce", "study.estimand=best"),
    "fewer_steps": ("study=fewer_steps", "experiment=laptop", "trainer.max_steps=405"),
}
"""Overrides of each study."""
LADDER = {"350k": 350_000, "100k": 100_000, "40k": 40_000, "20k": 20_000}
"""Bytes of text that a teacher reads; the student reads 20,000."""
KNOWN = (
    Known("frozen better teacher", "teacher", GAIN),
    Known("placebo of the teacher", "teacher", NEITHER, "placebo", "none"),
    Known("law of the state", "law", GAIN),
    Known("placebo of the law", "law", NEITHER, "placebo", "none"),
    Known("noise on the input", "noise", BETTER),
    Known("the same twice", "same", NEITHER),
    Known("ten percent fewer steps", "fewer_steps", HARM),
)


class Outcome(NamedTuple):
    """What a comparison said."""

    known: Known
    word: str
    numbers: str

    @property
    def right(self) -> bool:
        """Whether the verdict is the known one."""
        return self.word in self.known.words


def train(words: Sequence[str], log: Path) -> None:
    """Run `train.py` in a process of its own; its words go to a file.

    Raises:
        UserError: it failed; says why.
    """
    code = "import sys; from jepa_lm.cli import train; sys.exit(train())"
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{log}: training ended with exit code {done.returncode} ({last[:200]})")


def calibrate(folder: Path, first_seed: int, more: Sequence[str]) -> list[Outcome]:
    """Run what has not been run, and judge it.

    Args:
        folder: of the studies. more: overrides of every run.

    Raises:
        UserError: a training failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"first_seed": first_seed, "overrides": sorted(more)}
    _check_begun(folder, settings)
    log = folder / "log.txt"
    seeds = f"seed=range({first_seed},{first_seed + SEEDS})"
    teacher = folder / "teacher_model"
    try:
        if not Run(teacher).finished:
            asked = _teacher(teacher, first_seed, more)
            _told("the teacher", partial(train, asked, log))
    finally:
        if Run(teacher).config:  # a training has taken the settings
            write_json(folder / SETTINGS, settings)
    for name, words in STUDIES.items():
        own = [word.format(teacher=value_of(str(teacher))) for word in words]
        place = f"hydra.sweep.dir={value_of(str(folder / name))}"
        _told(name, partial(train, [*own, seeds, place, *more], log))
    results = {name: collect(folder / name) for name in STUDIES}
    return [outcome(known, results[known.study]) for known in KNOWN]


def climb(folder: Path, first_seed: int, more: Sequence[str]) -> None:
    """Run the ladder: a study whose treatments differ in the text that their teacher has read.

    Raises:
        UserError: a training failed.
    """
    log, below = folder / "log.txt", folder / "ladder_models"
    for name, size in LADDER.items():
        if not Run(below / name).finished:
            asked = _teacher(below / name, first_seed, [f"data.train_tokens={size}", *more])
            _told(f"the teacher of {name}", partial(train, asked, log))
    words = [word for word in STUDIES["teacher"] if not word.startswith("jepa.target.path")]
    paths = ",".join(value_of(str(below / name)) for name in LADDER)
    words += [f"jepa.target.path={paths}", "study.arms.placebo=null", "study.name=ladder"]
    seeds = f"seed=range({first_seed},{first_seed + SEEDS})"
    place = f"hydra.sweep.dir={value_of(str(folder / 'ladder'))}"
    _told("ladder", partial(train, [*words, seeds, place, *more], log))


def _check_begun(folder: Path, settings: Mapping[str, Any]) -> None:
    """Check what a folder was begun with: its teachers are not trained again for other seeds or settings.

    Raises:
        UserError: it was begun with something else.
    """
    path = folder / SETTINGS
    if path.is_file():
        before = read_json(path)
    else:  # from before they were kept
        seed = Run(folder / "teacher_model").config.get("seed", settings["first_seed"])
        before = {**settings, "first_seed": seed}
    if before != settings:
        raise UserError(
            f"--out={folder}: was begun with {_said(before)}, and this is {_said(settings)}; name another "
            "folder"
        )


def _said(settings: Mapping[str, Any]) -> str:
    more = " ".join(settings["overrides"]) or "no overrides"
    return f"--first-seed {settings['first_seed']} and {more}"


def _teacher(folder: Path, seed: int, more: Sequence[str]) -> list[str]:
    place = f"hydra.run.dir={value_of(str(folder))}"
    words = ["experiment=scarce_teacher", f"seed={seed}", place]
    return [*words, "ckpt_path=auto", *more]


def _told(name: str, run: Callable[[], None]) -> None:
    began = time.monotonic()
    tell(f"{name} ...")
    run()
    tell(f"{name}: {time.monotonic() - began:.0f} s")


def outcome(known: Known, results: Results) -> Outcome:
    """Return the verdict of a comparison."""
    if not known.against:
        (treatment,) = results.treatments
        return Outcome(known, treatment.word, numbers(treatment.main.effect))
    arms: tuple[ArmResult, ArmResult] = results.arms[known.treatment], results.arms[known.against]
    effect, word = judged(*arms)
    return Outcome(known, word, numbers(effect))


def report(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write calibration.md and calibration.json; return the first."""
    rows = [
        "| comparison | expected | verdict | | numbers | report |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for found in outcomes:
        known = found.known
        link = f"[{known.study}]({known.study}/report.html)"
        said = "right" if found.right else "**wrong**"
        expected = " or ".join(known.words)
        rows.append(
            f"| {known.name} | {expected} | {found.word} | {said} | {found.numbers} | {link} |"
        )
    right = all(found.right for found in outcomes)
    verdict = (
        "Every verdict is the known one."
        if right
        else "A verdict is not the known one: do not "
        "trust what this installation says of an objective."
    )
    path = folder / "calibration.md"
    ladder = [
        "[Teachers that read less and less text](ladder/report.html) decide nothing: their gain should",
        "shrink with the text, to none for the student's own.",
        "",
    ]
    climbed = ladder if (folder / "ladder").is_dir() else []
    write_text(path, "\n".join(["# Calibration", "", verdict, "", *rows, "", *climbed]))
    told = [
        {**found.known.__dict__, "word": found.word, "right": found.right} for found in outcomes
    ]
    write_json(folder / "calibration.json", {"right": right, "comparisons": told})
    return path


def _calibrate(words: list[str]) -> int:
    parser = Parser(prog="python -m jepa_lm.study.calibrate", description=__doc__)
    parser.add_argument("--out", default=str(LOGS / "calibration"), help="folder of the studies")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument(
        "--no-ladder", dest="ladder", action="store_false", help="leave out the ladder of teachers"
    )
    parser.add_argument("overrides", nargs="*", help="settings of every run, such as trainer=gpu")
    asked = parser.parse_args(words)
    folder = Path(asked.out).absolute()
    outcomes = calibrate(folder, asked.first_seed, asked.overrides)
    path = report(folder, outcomes)
    for found in outcomes:
        tell(f"{found.known.name}: {found.word} ({found.numbers})")
        if not found.right:
            warn(f"{found.known.name}: expected {' or '.join(found.known.words)}")
    tell(f"written to {path}")
    if asked.ladder:  # decides nothing, so nothing waits for it
        climb(folder, asked.first_seed, asked.overrides)
        report(folder, outcomes)
    return 0 if all(found.right for found in outcomes) else 1


def main(words: list[str]) -> int:
    """Calibrate. Return 0, 1 if a verdict is not the known one, or 2 after one line of error."""
    return command(lambda: _calibrate(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
