"""`python -m jepa_lm.artifact FILE`: load an artifact strictly and show its contents."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table
from yaml import YAMLError

from jepa_lm.artifact.loading import load_artifact
from jepa_lm.artifact.publishing import find_artifact
from jepa_lm.utils.config import check_type
from jepa_lm.utils.console import Screen
from jepa_lm.utils.crash import command
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.finding import as_path
from jepa_lm.utils.schema import Limits
from jepa_lm.utils.trusted import Trust


def contents(path: Path, trust: Trust | None = None) -> list[tuple[str, str]]:
    """Return a description of the artifact as (name, value) rows.

    Raises:
        UserError: the file is not a valid artifact.
    """
    loaded = load_artifact(path, trust)
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
        ("bits per weight on disk", f"{8 * path.stat().st_size / max(1, total):.3f}"),
        ("format version", str(meta["format_version"])),
        ("model", f"{meta['model']['_target_']} on {_class(meta['model'].get('backbone'))}"),
        ("width, layers, vocabulary", f"{model.dim}, {model.layers}, {model.vocab_size}"),
        ("parameters", f"{total:,}"),
    ]
    for kind, count in values.most_common():
        share = f"{count / max(1, total):.1%}"
        rows.append((f"stored as {kind}", f"{tensors[kind]} tensors, {count:,} values, {share}"))
    return [
        *rows,
        ("temperature", f"{meta['temperature']:g}"),
        ("tokenizer", meta["tokenizer"]),
        ("trained with", f"seed {meta['seed']}, {meta['steps']:,} steps, {meta['precision']}"),
        ("git commit", f"{git.get('commit')}{' with changes' * bool(git.get('dirty'))}"),
    ]


def _class(node: Any) -> str:
    return str(node.get("_target_")) if isinstance(node, dict) else "no backbone"


def main(arguments: list[str]) -> int:
    """Show an artifact. Return exit code 0, or 2 after one line of error; see `jepa_lm.utils.crash`."""
    return command(lambda: _show(arguments))


def _show(arguments: list[str]) -> None:
    words = [word for word in arguments if word.startswith(("trust=", "limits."))]
    named = [word for word in arguments if word not in words]
    if len(named) != 1 or named[0].startswith("-"):
        raise UserError("python -m jepa_lm.artifact FILE [trust=[my_module]] [limits.bytes=...]")
    path = as_path("artifact_path", named[0])
    if path.is_dir():
        path = find_artifact(named[0])
    table = Table(title=path.name, show_header=False)
    for row in contents(path, _trust(words)):
        table.add_row(*row)
    Screen().print(table)


def _trust(words: list[str]) -> Trust:
    """Parse `trust=` and `limits.` as the other commands do."""
    known = OmegaConf.create({"trust": [], "limits": OmegaConf.structured(Limits)})
    OmegaConf.set_struct(known, True)
    try:
        given = OmegaConf.to_container(OmegaConf.merge(known, OmegaConf.from_dotlist(words)))
    except (OmegaConfBaseException, YAMLError) as error:
        reason = str(error).split("full_key", 1)[0]
        raise UserError(f"{' '.join(words)}: {' '.join(reason.split())}") from error
    assert isinstance(given, dict)
    check_type("trust", given["trust"], list[str])
    return Trust.of({str(key): value for key, value in given.items()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
