"""Records of sweeps and runs, as `python -m jepa_lm.study` reads them: plans, summaries, configs, tables."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from jepa_lm.study.__main__ import main
from jepa_lm.utils.errors import UserError
from tests.fuzz.material import Material
from tests.fuzz.mutations import BAIT, TEXTS, cut, damaged, flipped, junk, spliced
from tests.study.sweeps import study

PLAN, SUMMARY, CONFIG, METRICS = "study.json", "summary.json", "config.json", "metrics.csv"
COMMANDS = ("ls", "ls --json", "compare") * 3 + ("report",)
"""Reports are rare here because one takes as long as a hundred of the other commands."""
CHOICES = ".hydra/hydra.yaml"
SCORES = {"control": {"1": 1.71, "2": 1.70}, "vicreg": {"1": 1.69, "2": 1.68}}
MARKUP = "<script>alert(1)</script>"
LAUGHS = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAMLS = (
    f"!!python/object/apply:{BAIT}.Owned []", "!!python/object/apply:os.system ['touch OWNED']", "&a [*a]",
    "x: ${oc.env:SECRET}", LAUGHS, "{" * 5000, "[" * 60, "\xff", "a: !!binary x", "- \t- a", "? [a]\n: b",
    "hydra:\n  runtime:\n    choices: [a]\n", "hydra: 5", "a: 1\na: 2", "a: 0o7777777777777777777777777",
    "<<: 5",
)  # fmt: skip


class Reader:
    """A study of two arms and two seeds."""

    allowed = ()

    def __init__(self, material: Material) -> None:
        self._home = tempfile.TemporaryDirectory()
        self.source = study(
            Path(self._home.name) / "sweep", SCORES, against={"vicreg": {"baseline": "control"}}
        )
        self.plan = json.loads((self.source / PLAN).read_text())
        self.runs = sorted(path.name for path in self.source.iterdir() if path.is_dir())
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main([str(self.source)])  # plotting libraries create folders of their own, once
        for page in self.source.glob("report.*"):
            page.unlink()

    def mutant(self, number: int, rng: random.Random) -> tuple[str, Any]:
        kinds = [
            self.summary, self.summary, self.config, self.plan_of, self.metrics, self.metrics, self.yaml,
            self.text,
            self.bytes, self.place,
        ]  # fmt: skip
        kind = kinds[number % len(kinds)]
        changes = kind(rng)
        return kind.__name__, (changes, rng.choice(COMMANDS))

    def summary(self, rng: random.Random) -> dict[str, Any]:
        return self._damaged(rng, SUMMARY)

    def config(self, rng: random.Random) -> dict[str, Any]:
        return self._damaged(rng, CONFIG)

    def _damaged(self, rng: random.Random, name: str) -> dict[str, Any]:
        run = rng.choice(self.runs)
        value = damaged(json.loads((self.source / run / name).read_text()), rng)
        return {f"{run}/{name}": json.dumps(value if rng.random() < 0.9 else junk(rng)).encode()}

    def plan_of(self, rng: random.Random) -> dict[str, Any]:
        return {PLAN: json.dumps(damaged(self.plan, rng)).encode()}

    def text(self, rng: random.Random) -> dict[str, Any]:
        """A user's words that are markup, commands or escapes elsewhere."""
        word = rng.choice(TEXTS)
        plan = json.loads(json.dumps(self.plan).replace("vicreg", "WORD").replace("seed=", "WORD"))
        renamed = json.loads(json.dumps(plan).replace("WORD", json.dumps(word)[1:-1]))
        run = rng.choice(self.runs)
        summary = json.loads((self.source / run / SUMMARY).read_text())
        summary |= {
            "status": rng.choice(["failed", "finished"]),
            "error": word,
            "versions": {word: word},
        }
        config = json.loads((self.source / run / CONFIG).read_text()) | {
            "task_name": word,
            "tags": [word],
        }
        return {
            PLAN: json.dumps(renamed).encode(),
            f"{run}/{SUMMARY}": json.dumps(summary).encode(),
            f"{run}/{CONFIG}": json.dumps(config).encode(),
        }

    def metrics(self, rng: random.Random) -> dict[str, Any]:
        """Rows and columns of a run's table."""
        run = rng.choice(self.runs)
        rows = [line.split(",") for line in (self.source / run / METRICS).read_text().splitlines()]
        for _ in range(rng.choice([1, 1, 5])):
            row = rng.choice([row for row in rows[:1] + rows if row])
            change = rng.randrange(4)
            if change == 0:
                row[rng.randrange(len(row))] = rng.choice(
                    [*TEXTS, "nan", "inf", "-1", "1e999", "9" * 400]
                )
            elif change == 1:
                del row[rng.randrange(len(row)) :]
            elif change == 2:
                rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))
            else:
                row += ["1"] * rng.choice([1, 1000])
        data = rng.choice(["\n", "\n", "\r\n", "\r"]).join(",".join(row) for row in rows)
        return {
            f"{run}/{METRICS}": data.encode(errors="replace")
            + rng.choice([b"\n", b"", b'"', b"\0\0", b"\xff\n"])
        }

    def yaml(self, rng: random.Random) -> dict[str, Any]:
        return {f"{rng.choice(self.runs)}/{CHOICES}": rng.choice(YAMLS).encode(errors="replace")}

    def bytes(self, rng: random.Random) -> dict[str, Any]:
        name = rng.choice(
            [PLAN, *(f"{rng.choice(self.runs)}/{x}" for x in (SUMMARY, CONFIG, METRICS, CHOICES))]
        )
        whole = (self.source / name).read_bytes()
        return {name: rng.choice([
            flipped(whole, rng), cut(whole, rng), spliced(whole, rng), b"", b"[" * 100_000, b"\xff\xfe",
            b"null",
            json.dumps(junk(rng)).encode(), b'"x"', b"5", b"9" * 5000, whole + whole,
        ])}  # fmt: skip

    def place(self, rng: random.Random) -> dict[str, Any]:
        """Files that are missing, folders in their place, jobs that lie elsewhere."""
        run = rng.choice(self.runs)
        name = rng.choice([PLAN, run, *(f"{run}/{x}" for x in (SUMMARY, CONFIG, METRICS, CHOICES))])
        if rng.random() < 0.5:
            return {name: rng.choice([None, "folder", "loop"])}
        text = json.dumps(self.plan)
        elsewhere = rng.choice(
            ["../../../../etc", "/etc", "nope", "a\0b", "..", ".", "", "x" * 300]
        )
        return {PLAN: text.replace(f'"{run}"', json.dumps(elsewhere)).encode()}

    def put(self, mutant: Any, folder: Path) -> None:
        changes, self.command = mutant
        sweep = folder / "sweep"
        shutil.copytree(self.source, sweep)
        for name, data in changes.items():
            path = sweep / name
            if isinstance(data, bytes):
                path.write_bytes(data)
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            if data == "folder":
                path.mkdir()
            elif data == "loop":
                path.symlink_to(path)

    def read(self, folder: Path) -> str | None:
        sweep = folder / "sweep"
        words = {
            "ls": ["ls", str(sweep)],
            "ls --json": ["ls", str(sweep), "--json"],
            "compare": ["compare", str(sweep / self.runs[0]), str(sweep / self.runs[-1])],
            "report": [str(sweep)],
        }[self.command]
        said, told = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
            code = main(words)
        if code == UserError.exit_code:
            raise UserError(told.getvalue().strip().splitlines()[-1])
        if code:
            return f"{self.command}: exit code {code}, {told.getvalue()[-300:]}"
        if "\x1b[31m" in said.getvalue() + told.getvalue():
            return f"{self.command}: an escape reaches the terminal"
        for page in sweep.glob("report.*"):
            if MARKUP in page.read_text(encoding="utf-8"):
                return f"{page.name}: markup of a record is in it"
        if self.command == "ls --json":
            json.loads(said.getvalue(), parse_constant=_refuse)
        return None


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")
