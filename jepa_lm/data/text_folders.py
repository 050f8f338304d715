"""Find the text files at a path, and name the files that were left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from jepa_lm.data.text_files import (
    JSON_LINES,
    PACKED,
    PLAIN,
    TextFile,
    check_first_document,
    holds_documents,
    suffix,
)
from jepa_lm.data.text_formats import HEAD, check_format
from jepa_lm.utils.errors import UserError

MAYBE_LINES = ".json"
"""Such files hold one document per line, or a single value; the first line decides."""
NAMED = 3
"""Most files that a remark names; the others are only counted."""
EXPECTED = "files that end in .txt, .md, .jsonl or .ndjson, alone or followed by .gz or .zst"


def text_files(key: str, path: str) -> tuple[list[TextFile], list[str]]:
    """Return the text files at a path, sorted by name, and remarks on files that were left out.

    Linked folders are read, each once; names that begin with a dot are skipped.

    Args:
        key: the setting that holds the path, for messages.

    Raises:
        UserError: the path does not exist, holds no text, or holds a file that must first be converted.
    """
    if not path.strip():
        raise UserError(f"{key}: is empty; name a file or a folder")
    found = Path(os.path.expanduser(path))
    if os.path.isfile(found):
        file = TextFile(key, found, json=suffix(found) in {*JSON_LINES, MAYBE_LINES})
        head = _checked_head(file)
        if _blank(head):
            raise UserError(f"{key}={path}: the file is empty or blank; give a file with text")
        plain = not file.json and holds_documents(head)
        return [file], [_read_as_plain(key, [found])] if plain else []
    if not os.path.isdir(found):
        what = (
            "is neither a file nor a folder" if os.path.exists(found) else "no such file or folder"
        )
        raise UserError(f"{key}={path}: {what}")
    files: list[TextFile] = []
    passed_over: list[Path] = []
    plain_json: list[Path] = []
    for member in sorted(_members(found)):
        text = _text_of_folder(key, member)
        if text is None:
            passed_over.append(member)
        elif not _blank(head := _checked_head(text)):
            files.append(text)
            if not text.json and holds_documents(head):
                plain_json.append(member)
    files, doubled = _once(files)
    if not files:
        there = f" (found {listed(passed_over, found)})" if passed_over else ""
        raise UserError(f"{key}={path}: holds no text; expected {EXPECTED}{there}")
    remarks = []
    if passed_over:
        names = listed(passed_over, found)
        remarks.append(f"{key}={path}: left out {names}; only {EXPECTED} are read")
    if doubled:
        names = listed(doubled, found)
        remarks.append(f"{key}={path}: left out {names}; the uncompressed text is there as well")
    if plain_json:
        remarks.append(_read_as_plain(key, plain_json))
    return files, remarks


def _read_as_plain(key: str, paths: list[Path]) -> str:
    return (
        f"{key}: {listed(paths)} has JSON lines but is read as plain text; with a name that ends in .jsonl, "
        "each line would be a document"
    )


def _members(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, following links, without hidden files; no folder twice."""

    def closed(error: OSError) -> None:
        raise error

    seen = {_identity(folder)}
    for where, folders, files in os.walk(folder, followlinks=True, onerror=closed):
        for name in sorted(folders):
            identity = _identity(Path(where, name))
            if name.startswith(".") or identity in seen:
                folders.remove(name)
            else:
                seen.add(identity)
        yield from (Path(where, name) for name in files if not name.startswith("."))


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _text_of_folder(key: str, path: Path) -> TextFile | None:
    """Return a folder's file as text, or None if its name is not that of a text file."""
    if not os.path.isfile(path):
        return None
    name = suffix(path)
    if name in PLAIN | JSON_LINES:
        return TextFile(key, path, json=name in JSON_LINES)
    with open(path, "rb") as file:
        check_format(key, path, file.read(512), in_folder=True)
    if name == MAYBE_LINES and holds_documents(TextFile(key, path).head()):
        return TextFile(key, path, json=True)
    return None


def _checked_head(file: TextFile) -> bytes:
    """Return the first bytes of a text after checking that its format and its first line are supported."""
    head = file.head()
    check_format(file.key, file.path, head)
    if file.json:
        check_first_document(file, head)
    return head


def _blank(head: bytes) -> bool:
    return len(head) < HEAD and not head.strip()


def _once(files: list[TextFile]) -> tuple[list[TextFile], list[Path]]:
    """Drop second names of a file and compressed copies beside the text; return the files and the copies."""
    first: dict[tuple[int, int], TextFile] = {}
    for file in files:
        first.setdefault(_identity(file.path), file)
    names = {file.path for file in first.values()}
    packed = [path for path in names if path.suffix.lower() in PACKED]
    doubled = sorted(path for path in packed if path.with_suffix("") in names)
    return [file for file in first.values() if file.path not in doubled], doubled


def listed(paths: list[Path], folder: Path | None = None) -> str:
    """Join the first few paths, relative to `folder`, and say how many more there are."""
    names = ", ".join(str(path.relative_to(folder) if folder else path) for path in paths[:NAMED])
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{names}{more}"
