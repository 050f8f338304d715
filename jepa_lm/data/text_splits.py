"""Split a user's text into training and validation, by bytes at line ends, without overlap."""

from __future__ import annotations

from jepa_lm.data.text_files import TextFile
from jepa_lm.utils.errors import UserError

MOST_HELD_OUT = 0.2
"""Share of the text above which a run warns that much of it is held out for validation."""


def without(
    training: list[TextFile], held_out: list[TextFile]
) -> tuple[list[TextFile], list[TextFile]]:
    """Return the training files that are not validation files, and those that are, by path or by content."""
    sizes: dict[int, list[TextFile]] = {}
    for file in held_out:
        sizes.setdefault(file.path.stat().st_size, []).append(file)
    kept: list[TextFile] = []
    left_out: list[TextFile] = []
    for file in training:
        alike = sizes.get(file.path.stat().st_size, [])
        same = any(file.same_bytes(other) for other in alike)
        (left_out if same else kept).append(file)
    return kept, left_out


def hold_out(files: list[TextFile], fraction: float) -> tuple[list[TextFile], list[TextFile]]:
    """Return the training files and the last `fraction` of all bytes; the cut is at the nearest line end.

    A document of a .jsonl file is never cut. A plain file is cut within a line if its lines are so long that
    far more or far less than `fraction` would be held out.

    Raises:
        UserError: the text cannot be cut in two.
    """
    sizes = [file.size for file in files]
    total, wanted = sum(sizes), fraction * sum(sizes)
    index, before = 0, 0
    while index < len(files) - 1 and before + sizes[index] <= total - wanted:
        before += sizes[index]
        index += 1
    file, after = files[index], sum(sizes[index + 1 :])
    first, end = _text_within(file)
    aim = min(int(total - wanted) - before, end)
    edges = [0] * (index > 0) + [sizes[index]] * (index < len(files) - 1)
    places = [p for p in _line_starts(file, aim) if first < p < end] + edges
    if not file.json:
        most = max(2 * wanted, MOST_HELD_OUT * total)
        places = [p for p in places if wanted / 4 <= sizes[index] - p + after <= most]
        places = places or [p for p in [_character_start(file, aim)] if first < p < end] or edges
    if not places:
        raise UserError(
            f"{file.key}={file.path}: {total} bytes are too few to hold out a validation split; give "
            "more text or set data.val_path"
        )
    where = min(places, key=lambda place: abs(place - aim))
    head, tail = file.split(where)
    training = [*files[:index], *([head] if where > 0 else [])]
    return training, [*([tail] if where < sizes[index] else []), *files[index + 1 :]]


def _text_within(file: TextFile) -> tuple[int, int]:
    """Return the start of the first character that is not white space, and the end of the last one."""
    first, end, at = -1, 0, 0
    for chunk in file.chunks():
        if text := chunk.rstrip():
            end = at + len(text)
            if first < 0:
                first = at + len(text) - len(text.lstrip())
        at += len(chunk)
    return first, end


def _line_starts(file: TextFile, aim: int) -> list[int]:
    """Return the last line start at or before `aim`, and the first one after it."""
    found, at = [0], 0
    for chunk in file.chunks():
        here = max(0, aim - at)
        if (newline := chunk.rfind(b"\n", 0, here)) >= 0:
            found = [at + newline + 1]
        if here < len(chunk) and (newline := chunk.find(b"\n", here)) >= 0:
            return [*found, at + newline + 1]
        at += len(chunk)
    return found


def _character_start(file: TextFile, aim: int) -> int:
    """Return the first start of a character at or after `aim`."""
    with file.split(aim)[1].reading() as text:
        rest = text.read(4)
    return aim + next((i for i, byte in enumerate(rest) if byte & 0xC0 != 0x80), 0)
