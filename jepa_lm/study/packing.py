"""Pack the records of a sweep or study into one zip file, and unpack it where a report can be built.

A file from elsewhere is data: only records that reports read, within bounds. Nothing in it is run, no link is
made, and nothing is written outside the new folder.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from jepa_lm.study import manifest
from jepa_lm.study.runs import MOST_BYTES, below_hydra
from jepa_lm.study.tuning import FOLDER as TUNING
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import replacing, staging, write_bytes
from jepa_lm.utils.nested import at
from jepa_lm.utils.paths import CONFIG_FILE, METRICS_FILE, SAMPLE_FILE, SUMMARY_FILE

SUFFIX = ".zip"
HYDRA = "hydra.yaml"
OF_A_RUN = (SUMMARY_FILE, CONFIG_FILE, METRICS_FILE, SAMPLE_FILE, f".hydra/{HYDRA}")
"""Records of a run that reports read."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of the entries: equal records give equal files."""
COMPRESSED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How entries may be compressed: with LZMA, a file chooses how much memory its reader takes."""
MOST_ENTRIES, MOST_IN_ALL = 100_000, 4 << 30
"""Limits of a packed study: entries, and bytes of all of them."""
DRAWS = f"{TUNING}/{manifest.FILE}"
"""Plan of the draws of a study that was tuned."""
PLANS = (manifest.FILE, DRAWS)
PLAIN = re.compile(r"[^\x00-\x1f\\:]{1,400}")
"""Names that are plain on every system."""


def pack(folder: Path) -> Path:
    """Write the plan and the records of every run to a zip file beside the folder; return it.

    Raises:
        UserError: the folder has no study.json, or a record is larger than reports read.
    """
    plan = manifest.load(folder)
    path = folder.absolute().with_name(f"{folder.absolute().name}{SUFFIX}")
    names = [manifest.FILE, *(f"{job.folder}/{name}" for job in plan.jobs for name in OF_A_RUN)]
    if (folder / DRAWS).is_file():
        draws = manifest.load(folder / TUNING).jobs
        names += [
            DRAWS,
            *(f"{TUNING}/{job.folder}/{name}" for job in draws for name in OF_A_RUN),
        ]
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            record = folder / name
            if not record.is_file():
                continue
            if record.stat().st_size > MOST_BYTES:
                raise UserError(
                    f"{record}: is larger than the {MOST_BYTES:,} bytes that a report reads"
                )
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, _without_places(record, folder))
    return path


def _without_places(record: Path, folder: Path) -> bytes:
    """Return a record without what is only true on this machine: where Hydra ran, and the study's folder."""
    if record.name == HYDRA:
        choices = at(below_hydra(record.parents[1], HYDRA), "hydra", "runtime", "choices") or {}
        return json.dumps({"hydra": {"runtime": {"choices": choices}}}).encode()
    found = record.read_bytes()
    for place in {folder.absolute(), folder.resolve()}:
        found = found.replace(json.dumps(str(place))[1:-1].encode(), b".")
    return found


def unpack(path: Path) -> Path:
    """Unpack a packed study into the folder beside it that has its name; return that folder.

    Raises:
        UserError: it is not a packed study, exceeds the limits, or the folder is there already.
    """
    folder = path.with_suffix("")
    if folder.exists():
        raise UserError(f"{path}: {folder} is there already; name that folder, or move it away")
    try:
        with zipfile.ZipFile(path) as archive, staging(path.absolute().parent) as inside:
            for entry in _checked(path, archive):
                target = inside / "study" / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(target, archive.read(entry))  # at most what its header says
            manifest.load(inside / "study")
            if (inside / "study" / DRAWS).is_file():
                manifest.load(inside / "study" / TUNING)
            (inside / "study").rename(folder)
    except UserError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        RuntimeError,
        ValueError,  # a name that is not in the encoding that it claims
    ) as error:
        raise UserError(f"{path}: is not a packed study ({error})") from error
    return folder


def _checked(path: Path, archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """Yield the entries, after all of them have been found to be records within the limits."""
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES or sum(entry.file_size for entry in entries) > MOST_IN_ALL:
        raise UserError(
            f"{path}: holds more than {MOST_ENTRIES:,} records or {MOST_IN_ALL:,} bytes"
        )
    seen = set()
    for entry in entries:
        name = PurePosixPath(entry.filename)
        below = entry.filename.removesuffix(f"/{_record(entry.filename)}")
        plain = (
            PLAIN.fullmatch(entry.filename)
            and not name.is_absolute()
            and ".." not in name.parts
            and str(name) == entry.filename
        )
        if not plain or (entry.filename not in PLANS and below == entry.filename):
            raise UserError(f"{path}: {entry.filename[:100]!r} is no record of a study")
        if entry.filename in seen or entry.file_size > MOST_BYTES:
            raise UserError(f"{path}: {entry.filename[:100]} is there twice, or too large")
        if entry.compress_type not in COMPRESSED:
            raise UserError(
                f"{path}: {entry.filename[:100]} is compressed by method {entry.compress_type}; must be "
                "stored (0) or deflated (8)"
            )
        seen.add(entry.filename)
    if manifest.FILE not in seen:
        raise UserError(f"{path}: is not a packed study (it has no {manifest.FILE})")
    yield from entries


def _record(name: str) -> str:
    """Return the record of a run that an entry is; empty if it is none."""
    return next((record for record in OF_A_RUN if name.endswith(f"/{record}")), "")
