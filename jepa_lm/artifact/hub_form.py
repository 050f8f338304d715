"""The form in which an export is shared: the same model and figures, without paths of the user's machine.

A path keeps its last name, so that a reader still sees which file it was: `/home/me/text/emma.txt` becomes
`emma.txt`. An artifact that holds paths (of the text that its model was trained on) is written anew, with the
same weights; the records then state its size and hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa_lm.artifact.compression import compress_best
from jepa_lm.artifact.container import packed_streams, to_file
from jepa_lm.artifact.loading import META_KEY, compact_json
from jepa_lm.artifact.publishing import ACCOUNT, DIGEST_KEY, SUBMISSION
from jepa_lm.utils.files import as_json, read_object

PATH = re.compile(
    r"(?<![\w/\\.~-])(?!(?<=:)//)(?:file://)?(?:~\w*|[A-Za-z]:)?"
    r"""(?:[/\\]+[^/\\\s'"`,;()\[\]{}]+)+"""
)
"""A path from the root of a file system or from a home folder, but no address on the web."""
SIZES = {
    ACCOUNT: {"bytes": 1, "total": 1, "headroom": -1},
    SUBMISSION: {"bytes_model": 1, "bytes_total": 1},
}
"""Figures of each record that change with the size of the artifact, and in which direction."""
ROWS = re.compile(r"(?m)^(\| (?:model, .*|total) \| )([\d,]+)( \|)$")
"""Rows of the card that state it."""

HEADER = "---\nlibrary_name: jepa_lm\npipeline_tag: text-generation\ntags: [jepa]\n---\n\n"
"""What the hub reads at the start of a card."""


def to_share(artifact: Path, records: Mapping[str, Path]) -> dict[str, bytes]:
    """Return what is uploaded of an export by its names in the repo, the artifact first.

    Args:
        records: files beside the artifact by their names in the repo.

    Raises:
        UserError: the artifact is damaged.
    """
    data = _artifact(artifact)
    known = str(read_object(artifact.parent / ACCOUNT)[DIGEST_KEY])
    grown, digest = len(data) - artifact.stat().st_size, hashlib.sha256(data).hexdigest()
    sent = {f"artifact{artifact.suffix}": data}
    for name, path in records.items():
        if name in SIZES:
            record = _without_paths(read_object(path)) | {DIGEST_KEY: digest}
            for key, sign in SIZES[name].items():
                record[key] += sign * grown
            sent[name] = as_json(record).encode()
        elif path.suffix == ".json":
            sent[name] = as_json(_without_paths(read_object(path))).encode()
        elif path.suffix == ".md":
            card = without_paths(path.read_text(encoding="utf-8")).replace(known, digest)
            header = "" if card.startswith(HEADER) else HEADER  # of a pulled one
            sent[name] = (header + ROWS.sub(lambda row: _grown(row, grown), card)).encode()
        else:
            sent[name] = path.read_bytes()
    return sent


def without_paths(text: str) -> str:
    """Return the text with the last name of each path in place of the path."""
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = text.replace(home, "~")  # its name may hold spaces, which end a path in running text
    return PATH.sub(lambda path: re.split(r"[/\\]", path[0])[-1], text)


def _without_paths(value: Any) -> Any:
    """Return plain values with all their texts so."""
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, dict):
        return {key: _without_paths(entry) for key, entry in value.items()}
    return [_without_paths(entry) for entry in value] if isinstance(value, list) else value


def _artifact(path: Path) -> bytes:
    """Return the artifact's bytes, or those of one with the same contents and without paths."""
    first, *others = packed_streams(path)
    raw = first.unpacked()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    meta = json.loads(header["__metadata__"][META_KEY])
    if (shared := _without_paths(meta)) == meta:
        return path.read_bytes()
    header["__metadata__"][META_KEY] = compact_json(shared)
    text = compact_json(header).encode()
    text += b" " * (-len(text) % 8)
    raw = len(text).to_bytes(8, "little") + text + raw[8 + length :]
    return to_file([*compress_best([raw], [first.codec]), *others])


def _grown(row: re.Match[str], by: int) -> str:
    return f"{row[1]}{int(row[2].replace(',', '')) + by:,}{row[3]}"
