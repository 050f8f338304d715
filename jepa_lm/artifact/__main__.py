"""`python -m jepa_lm.artifact FILE`: what is inside an artifact, after it has been loaded strictly."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from rich.table import Table

from jepa_lm.artifact.loading import load_artifact
from jepa_lm.console import Screen
from jepa_lm.crash import command
from jepa_lm.errors import UserError


def contents(path: Path) -> list[tuple[str, str]]:
    """What there is to say about the file, as names and values.

    Raises:
        UserError: it is not a sound artifact.
    """
    loaded = load_artifact(path)
    meta, model = loaded.meta, loaded.model
    git = meta["git"]
    values: Counter[str] = Counter()
    tensors: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        spec = meta["formats"][name]
        kind = " ".join(str(v) for k, v in spec.items() if v is not None and k != "scale_dtype")
        values[kind] += parameter.numel()
        tensors[kind] += 1
    total = sum(values.values())
    rows = [
        ("bytes on disk", f"{path.stat().st_size:,}"),
        ("bits per weight on disk", f"{8 * path.stat().st_size / total:.3f}"),
        ("format version", str(meta["format_version"])),
        ("model", f"{meta['model']['_target_']} on {meta['model']['backbone']['_target_']}"),
        ("width, layers, vocabulary", f"{model.dim}, {model.layers}, {model.vocab_size}"),
        ("parameters", f"{total:,}"),
    ]
    for kind, count in values.most_common():
        share = f"{count / total:.1%}"
        rows.append((f"stored as {kind}", f"{tensors[kind]} tensors, {count:,} values, {share}"))
    return [
        *rows,
        ("temperature", f"{meta['temperature']:g}"),
        ("tokenizer", meta["tokenizer"]),
        ("trained with", f"seed {meta['seed']}, {meta['steps']:,} steps, {meta['precision']}"),
        ("git commit", f"{git.get('commit')}{' with changes' * bool(git.get('dirty'))}"),
    ]


def main(arguments: list[str]) -> int:
    """The exit code: 0, or 2 with one line on what is wrong; see `jepa_lm.crash`."""
    return command(lambda: _show(arguments))


def _show(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise UserError("python -m jepa_lm.artifact FILE")
    path = Path(arguments[0])
    table = Table(title=path.name, show_header=False)
    for row in contents(path):
        table.add_row(*row)
    Screen().print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
