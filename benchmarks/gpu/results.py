"""The result file of the kit: a JSON object per line, only ever appended to.

A line is a claim with its `step`, `{"finished": step}` or `{"failed": step}`. When a step that was cut off
runs again, each of its claims replaces the earlier one of the same name, and its end the earlier end.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

Line = dict[str, Any]
DIGITS = 4
LISTED = 12
"""More claims than these with one first word are summed up in a row."""
WIDEST = 44


class Results:
    """What the file holds and still counts.

    Args:
        path: created with the first line. A torn line, which a kill may leave, is skipped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Line] = []
        if path.exists():
            for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
                line = parsed(text)
                if line is not None:
                    self._count(line)

    def add(self, line: Line) -> None:
        """Append a line, after whatever a kill left of the last one."""
        self._count(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.read_bytes() if self.path.exists() else b""
        torn = written != b"" and not written.endswith(b"\n")
        with self.path.open("ab") as file:
            file.write((b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")

    def _count(self, line: Line) -> None:
        key = _key(line)
        self.lines = [kept for kept in self.lines if _key(kept) != key]
        self.lines.append(line)

    def has(self, step: str) -> bool:
        """Return whether a step has come to its end."""
        return any(line.get("finished") == step for line in self.lines)

    @property
    def claims(self) -> list[Line]:
        """The claims that count."""
        return [line for line in self.lines if "name" in line]

    @property
    def failures(self) -> list[Line]:
        """Steps that crashed or were cut off, each with the reason."""
        return [line for line in self.lines if "failed" in line]


def parsed(text: str) -> Line | None:
    """Return the object of a line, or None for any other text."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _key(line: Line) -> tuple[Any, Any]:
    """Return what a later line must share to replace this one."""
    if "name" in line:
        return line.get("step"), line["name"]
    return line.get("finished", line.get("failed")), None


def table(results: Results) -> str:
    """Return a row per claim: verdict, name, value with its unit, target; then the steps that failed.

    Where many claims have the same first word, those that are met share a row.
    """
    rows, summed = [], set()
    many = Counter(_group(line) for line in results.claims if line["target"] is not None)
    for line in results.claims:
        group = _group(line)
        if many[group] <= LISTED or line["target"] is None or not line["ok"]:
            value = f"{number(line)} {line['unit']}"
            rows.append((_verdict(line), line["name"], value, _target(line)))
        elif group not in summed:
            summed.add(group)
            met = [c for c in results.claims if _group(c) == group and c["target"] and c["ok"]]
            closest = max((c["value"] / c["target"] for c in met), default=0.0)
            rows.append(("ok", group, f"{len(met)} claims met", f"the closest at {closest:.0%}"))
    rows += [("FAIL", str(line["failed"]), line["why"], "") for line in results.failures]
    name_width = max((len(row[1]) for row in rows), default=0)
    value_width = min(WIDEST, max((len(row[2]) for row in rows), default=0))
    return "\n".join(
        f"{verdict:4}  {name:{name_width}}  {value:{value_width}}  {target}".rstrip()
        for verdict, name, value, target in rows
    )


def _group(line: Line) -> str:
    return str(line["name"]).partition("/")[0]


def number(line: Line, key: str = "value") -> str:
    """Return a figure as text: milliseconds and gigabytes with one decimal, others with four digits."""
    value = line[key]
    if not isinstance(value, int | float):
        return str(value)
    if line["unit"].split()[0] in ("ms", "GB", "GB/s", "TFLOP/s", "s") and abs(value) >= 1:
        return f"{value:.1f}"
    return f"{value:.{DIGITS}g}"


def _verdict(line: Line) -> str:
    if line["target"] is None:
        return ""
    return "ok" if line["ok"] else "FAIL"


def _target(line: Line) -> str:
    return "" if line["target"] is None else f"target {number(line, 'target')}"
