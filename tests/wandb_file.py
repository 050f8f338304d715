"""Read what W&B wrote offline, so that tests see what a server would receive."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes import PATIENCE


def records(path: Path) -> list[Any]:
    """Return the records of an offline file: LevelDB's log format after a header of 7 bytes.

    Blocks of 32 KiB hold chunks with a header of crc (4), length (2) and kind (1: whole, 2: first,
    3: middle, 4: last); fewer than 7 bytes at a block's end are padding. The file of a run that
    W&B's process still writes may end anywhere: what is not whole is no record yet.
    """
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert b":W&B".startswith(data[:4])
    found, parts, at = [], b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if at + 7 + length > len(data):
            break
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


@dataclass
class Offline:
    """One W&B run, as read from its file."""

    id: str = ""
    project: str = ""
    group: str = ""
    name: str = ""
    job_type: str = ""
    tags: set[str] = field(default_factory=set)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    """Definitions by metric."""
    files: set[str] = field(default_factory=set)
    artifacts: dict[str, set[str]] = field(default_factory=dict)
    """Names of files by artifact type."""
    preempting: bool = False
    exit_code: int | None = None
    """None for an unfinished run."""

    def series(self, name: str) -> list[float]:
        """Return every value of a metric, in order."""
        return [row[name] for row in self.history if name in row]


def read(path: Path) -> Offline:
    """Combine a file's records into a run."""
    run = Offline()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        part = getattr(record, kind)
        if kind == "run":
            run.id, run.project, run.group = part.run_id, part.project, part.run_group
            run.name, run.job_type, run.tags = part.display_name, part.job_type, set(part.tags)
            _update(run.config, part.config.update)
        elif kind == "config":
            _update(run.config, part.update)
        elif kind == "history":
            row: dict[str, Any] = {}
            _update(row, part.item)
            run.history.append(row)
        elif kind == "summary":
            _update(run.summary, part.update)
        elif kind == "metric":
            run.metrics[part.name or part.glob_name] = part
        elif kind == "files":
            run.files |= {file.path for file in part.files}
        elif kind == "artifact":
            run.artifacts[part.type] = {entry.path for entry in part.manifest.contents}
        elif kind == "preempting":
            run.preempting = True
        elif kind == "exit":
            run.exit_code = part.exit_code
    return run


def runs_in(folder: Path) -> list[Offline]:
    """Return the runs in a run folder, the oldest first."""
    return [_complete(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _complete(path: Path) -> Offline:
    """W&B's own process writes the file, and may be a moment behind `finish`."""
    deadline = time.monotonic() + PATIENCE
    while (run := read(path)).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return run


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *path, last = item.nested_key or [item.key]
        node = target
        for key in path:
            node = node.setdefault(key, {})
        node[last] = json.loads(item.value_json)
