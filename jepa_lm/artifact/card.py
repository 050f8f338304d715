"""Write submission.json and the model card, from the run's own records only.

Records may be missing, come from a failed run, or be edited by hand: missing fields are left out. Their text
is escaped, so that it cannot act as markup of the card.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from jepa_lm.artifact.publishing import DIGEST_KEY
from jepa_lm.utils.errors import warn
from jepa_lm.utils.files import read_json
from jepa_lm.utils.going_on import OVERRIDES, recorded_overrides
from jepa_lm.utils.nested import class_name
from jepa_lm.utils.paths import SUMMARY_FILE, called
from jepa_lm.utils.quoting import cut, markdown, one_line, shell

TEMPLATE = "model_card.md.j2"
LONGEST = 2000
"""Maximum number of characters of a text in the card."""
LARGEST = 1e18
"""Largest number in a record that is accepted."""


def run_records(checkpoint: Path) -> dict[str, Any]:
    """Read `summary` and the command line's `overrides` from the run's folder; None for a missing file.

    A file that cannot be read counts as missing, with a warning.
    """
    if checkpoint.parent.name != "checkpoints":
        return {"summary": None, "overrides": None}
    folder = checkpoint.parent.parent
    return {
        "summary": _read(_summary, folder, SUMMARY_FILE),
        "overrides": _read(recorded_overrides, folder, OVERRIDES),
    }


def _read(read: Callable[[Path], Any], folder: Path, name: str) -> Any:
    try:
        return read(folder)
    except (OSError, ValueError) as error:
        warn(f"{folder / name}: cannot be read ({error}); the card omits it")
        return None


def _summary(folder: Path) -> dict[str, Any] | None:
    try:
        found = read_json(folder / SUMMARY_FILE)
    except FileNotFoundError:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}")
    return found


def submission(
    given: dict[str, Any], account: dict[str, Any], run: dict[str, Any], records: dict[str, Any]
) -> dict[str, Any]:
    """Return the contents of submission.json.

    Args:
        given: the `submission` settings. account: contents of export.json. run: the run's resolved config.
    """
    protocol, scores = _best(account["round_trip"])
    summary = records["summary"] or {}
    return {
        "author": given["author"],
        "github_id": given["github_id"],
        "name": given["name"] or run["task_name"],
        "blurb": given["blurb"] or in_words(account, run),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "val_loss": scores and scores["artifact"]["nll"],
        "val_bpb": scores and scores["artifact"]["bpb"],
        "val_protocol": protocol,
        "val_tokens": scores and scores["artifact"]["tokens"],
        "val_complete": scores and account["scored_all"],
        DIGEST_KEY: account[DIGEST_KEY],
        "bytes_total": account["total"],
        "bytes_model": account["bytes"],
        "bytes_code": account["code_bytes"],
        "code": account["code"],
        "fits": account["fits"],
        "seed": run["seed"],
        "steps": account["steps"],
        "training_seconds": _number(summary, "seconds"),
        "training_status": _text(summary, "status"),
        "config_hash": _text(summary, "config_hash"),
        "git": _below(summary, "git") or None,
    }


def in_words(account: dict[str, Any], run: dict[str, Any]) -> str:
    """Return one sentence that describes the model."""
    backbone, losses = _below(run["model"], "backbone"), []
    for node, kind in (("jepa", "latent"), ("tokens", "token")):
        settings = _below(run, node)
        if "_target_" in settings:
            weight = _number(settings, "weight")
            losses.append(f"a {kind} loss" + ("" if weight is None else f" with weight {weight:g}"))
    objective = f"cross entropy plus {' and '.join(losses)}" if losses else "cross entropy only"
    return (
        f"{class_name(backbone)}, {backbone.get('layers', '?')} layers of width "
        f"{run['model'].get('dim', '?')}, {account['parameters']:,} parameters, {objective}, stored as "
        f"{', '.join(entry['format'] for entry in by_format(account['tensors']))}"
    )


def model_card(
    submission: dict[str, Any],
    account: dict[str, Any],
    run: dict[str, Any],
    records: dict[str, Any],
) -> str:
    """Return the model card in Markdown."""
    overrides, summary = records["overrides"], records["summary"]
    return _template().render(
        submission=submission,
        account=account,
        command=overrides and shell([*called("train"), *overrides]),
        training=_training(account, run, summary or {}),
        finished=summary is not None and summary.get("status") == "finished",
        sentence=in_words(account, run),
        formats=by_format(account["tensors"]),
        evaluation=shell(called("eval")),
        file=Path(account["artifact"]).name,
        sha256=account[DIGEST_KEY],
    )


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"shown": in_markdown, "versions": _versions}
    return environment.get_template(TEMPLATE)


def in_markdown(value: Any) -> str:
    """Escape a text so that Markdown shows it literally, on one line."""
    return markdown(cut(one_line(value), LONGEST))


def by_format(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tensors, values and bytes before compression of each format, most values first."""
    found: dict[str, dict[str, Any]] = defaultdict(lambda: {"tensors": 0, "values": 0, "bytes": 0})
    for row in tensors:
        entry = found[row["format"]]
        entry["tensors"] += 1
        entry["values"] += row["values"]
        entry["bytes"] += row["bytes"]
    return sorted(({"format": k, **v} for k, v in found.items()), key=lambda e: -e["values"])


def _training(
    account: dict[str, Any], run: dict[str, Any], summary: dict[str, Any]
) -> list[tuple[str, str]]:
    """Return the rows of the card's training table; fields missing from the summary are left out."""
    data, parameters, git = run["data"], _below(summary, "parameters"), _below(summary, "git")
    shipped, extra = _number(parameters, "shipped"), _number(parameters, "training_only")
    seconds, batch = _number(summary, "seconds"), _number(data, "batch_tokens")
    text = f"{class_name(data.get('corpus'))}, {class_name(data.get('tokenizer'))}"
    said: dict[str, str | None] = {
        "data": f"{text}, sequences of {data['seq_len']} tokens",
        "seed": str(run["seed"]),
        "steps": f"{account['steps']:,}" + ("" if batch is None else f" of {batch:,} tokens"),
        "seconds of training": None if seconds is None else f"{seconds:.1f}",
        "status": _text(summary, "status"),
        "parameters": None
        if shipped is None or extra is None
        else f"{shipped:,} shipped, {extra:,} for training only",
        "config hash": _text(summary, "config_hash"),
        "git commit": git.get("commit")
        and f"{git['commit']}{', with changes' * bool(git.get('dirty'))}",
        "versions": _versions(_below(summary, "versions")),
        "precision": run["trainer"]["precision"],
        "weights": account["weights"],
        "temperature": str(account["temperature"]["temperature"]),
    }
    return [(name, words) for name, words in said.items() if words]


def _best(scores: dict[str, Any]) -> tuple[str | None, Any]:
    """Return the scored protocol with the most context, and its scores."""
    for protocol in ("sliding", "standard"):
        if protocol in scores:
            return protocol, scores[protocol]
    return None, None


def _versions(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _below(node: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = node.get(key)
    return found if isinstance(found, dict) else {}


def _text(node: Mapping[str, Any], key: str) -> str | None:
    found = node.get(key)
    return found if isinstance(found, str) else None


def _number(node: Mapping[str, Any], key: str) -> int | float | None:
    found = node.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return found if abs(found) < LARGEST else None
