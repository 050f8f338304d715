"""run.html: the page that a finished run keeps in its folder. It needs no network and no script.

It is written from the folder's records, as a study's report is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from jepa_lm.study import formatting as words
from jepa_lm.study.chart import SERIES, Chart, Line, Panel, Points, Style, around, settled, thinned
from jepa_lm.study.comparable import compile_state, told
from jepa_lm.study.diagnostics import DIAGNOSTICS
from jepa_lm.study.losses import losses_of
from jepa_lm.study.runs import Run, as_score
from jepa_lm.study.table import Table
from jepa_lm.study.templates import environment
from jepa_lm.utils.files import write_text
from jepa_lm.utils.going_on import OVERRIDES, recorded_overrides
from jepa_lm.utils.metrics import (
    ABOVE_LAW,
    LOSSES,
    METRICS,
    TRAINING,
    MetricName,
    key_of,
    loss_of,
    measured,
)
from jepa_lm.utils.nested import at, class_name
from jepa_lm.utils.paths import (
    CONFIG_FILE,
    METRICS_FILE,
    PAGE_FILE,
    SAMPLE_FILE,
    SUMMARY_FILE,
    called,
)
from jepa_lm.utils.quoting import shell

PANELS = {
    "train/gradient_norm": "norm of the gradient",
    "train/tokens_per_second": "tokens per second",
    "val/branch_margin": "margin of the node to be planned, nats",
}
"""Measurements besides the scores, drawn for runs that have them."""
LINKED = (
    "checkpoints/last.ckpt",
    CONFIG_FILE,
    OVERRIDES,
    SUMMARY_FILE,
    METRICS_FILE,
    SAMPLE_FILE,
)
LONGEST_SAMPLE = 4000
SMOOTHED = 20
"""A point of a training score is the mean of 1/SMOOTHED of the log points, as in a report."""
OTHER_WEIGHTS = ("raw", "ema", "swa", "quantized")
Facts = list[tuple[str, str]]


def keep_page(folder: Path, sample: str, latents: Sequence[str], *, finished: bool) -> None:
    """Write the page and the sample of a run that finished; remove those of an earlier end of the run.

    Args:
        sample: may be empty. latents: sentences about the predicted latents.

    Raises:
        OSError: a file cannot be written.
    """
    if finished and sample:
        write_text(folder / SAMPLE_FILE, sample + "\n")
    else:
        (folder / SAMPLE_FILE).unlink(missing_ok=True)
    if finished:
        write_page(folder, latents)
    else:
        (folder / PAGE_FILE).unlink(missing_ok=True)


def write_page(folder: Path, latents: Sequence[str] = ()) -> Path:
    """Write the page of a finished run, from the records in its folder.

    Args:
        latents: sentences about the predicted latents.

    Raises:
        OSError: the page cannot be written.
    """
    run = Run(folder)
    context = {
        "name": folder.name,
        "headline": _headline(run),
        "basis": _basis(run),
        "command": _command(folder),
        "account": _account(run),
        "panels": _panels(run),
        "latents": list(latents),
        "measured": _measured(run),
        "sample": run.sample(LONGEST_SAMPLE),
        "records": Table(("record", "value"), tuple(told(run).items()), words=2),
        "links": [(name, quote(name)) for name in LINKED if (folder / name).is_file()],
        "cautions": run.summary.get("unfinished") or [],
        "written": run.summary.get("written", ""),
    }
    template = environment(Path(__file__).parent, html=True).get_template("run.html.j2")
    path = folder / PAGE_FILE
    write_text(path, template.render(context))
    return path


def _headline(run: Run) -> str:
    says, score = METRICS[run.metric].says, words.score(run.value)
    told = f"{score} {says}" if run.metric in LOSSES else f"{says} {score}"
    score = "no score" if run.value is None else told
    return f"{run.objective or 'a run'}, seed {run.summary.get('seed', words.NOTHING)}: {score}"


def _basis(run: Run) -> Facts:
    """Return what the run is, in sentences."""
    objective = run.objective or "not recorded"
    told = [
        f" ({class_name(run.config[node])}), weight {weight:g}"
        for node, weight in losses_of(run.config).items()
        if isinstance(weight, int | float)
    ]
    objective += " and".join(told)
    ranks, precision = run.summary.get("ranks"), run.summary.get("precision")
    device = [
        at(run.config, "trainer", "accelerator") or "not recorded",
        precision and f"precision {precision}",
        ranks and ("1 process" if ranks == 1 else f"{ranks} processes"),
        compile_state(run.summary),
    ]
    return [
        ("Objective", f"{objective}."),
        ("Data", words.data([run])),
        ("Model", words.model([run])),
        ("Budget", words.budget([run], None)),
        ("Device", f"{', '.join(filter(None, device))}."),
    ]


def _command(folder: Path) -> str | None:
    """Return the settings that were given, as a command; all others have their defaults."""
    try:
        found = recorded_overrides(folder)
    except (OSError, ValueError):
        return None
    return None if found is None else shell([*called("train"), *found])


def _account(run: Run) -> Facts:
    """Return the figures of the run: score, time, tokens, FLOPs, memory, size."""
    summary, tokens = run.summary, run.summary.get("tokens")
    flops, memory = summary.get("flops_per_token") or {}, summary.get("memory_bytes")
    per_token = sum(flops.values())
    found = {
        **{METRICS[m].says: words.score(run.score(m)) for m in METRICS},
        ABOVE_LAW: words.score(run.above_law),
        "weights that ship": str(at(summary, "val", "weights") or words.NOTHING),
        **{
            f"{METRICS[run.metric].says}, {name} weights": words.score(_other(run, name))
            for name in OTHER_WEIGHTS
        },
        "optimizer steps": words.count(summary.get("steps")),
        "training tokens": words.count(tokens),
        "passes over the training split": words.figure(summary.get("passes")),
        "training time": _duration(summary.get("seconds")),
        "tokens per second": words.count(summary.get("tokens_per_second")),
        "FLOPs per token": words.count(per_token or None),
        "FLOPs in all": f"{per_token * tokens:.3g}" if per_token and tokens else words.NOTHING,
        "peak memory, MiB": words.NOTHING if memory is None else words.count(memory / 2**20),
        "parameters that ship": words.count(at(summary, "parameters", "shipped")),
        "parameters for training only": words.count(at(summary, "parameters", "training_only")),
        "steps skipped": words.count(summary.get("skipped_steps")),
    }
    return [(name, text) for name, text in found.items() if text != words.NOTHING]


def _other(run: Run, name: str) -> float | None:
    """Return the score of weights that do not ship."""
    return as_score(at(run.summary, "val", name, key_of(run.metric)))


def _duration(seconds: float | None) -> str:
    if seconds is None or not 0 <= seconds < 1e9:
        return words.NOTHING
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, hours = round(seconds / 60), round(seconds / 60) // 60
    return f"{minutes} min" if hours < 2 else f"{hours} h {minutes % 60} min"


def _panels(run: Run) -> list[Panel]:
    """Return the charts of what was measured over the steps."""
    charts: list[tuple[str, Mapping[str, Points]]] = [
        (METRICS[metric].says, _scores(run, metric)) for metric in _judged(run)
    ]
    loss, part = _smooth(_done(run, "train/loss")), _smooth(_done(run, "train/ce"))
    if loss != part:
        charts.append(("training loss, nats", {"with objective": loss, "cross entropy": part}))
    charts += [(says, {says: _done(run, column)}) for column, says in PANELS.items()]
    charts += [
        (diagnostic.says, {diagnostic.says: _done(run, f"jepa/{name}")})
        for name, diagnostic in DIAGNOSTICS.items()
        if diagnostic.says
    ]
    return [panel(title, series) for title, series in charts if any(series.values())]


def _judged(run: Run) -> list[MetricName]:
    """Return the metrics that are drawn, the run's own first: its loss and all shares."""
    val = run.summary.get("val") or {}
    others = [m for m in measured(val) if m not in LOSSES or m == loss_of(val)]
    return [run.metric, *(metric for metric in others if metric != run.metric)]


def _scores(run: Run, metric: MetricName) -> dict[str, Points]:
    """Return a metric in training, if it is measured there, and in validation."""
    training = _smooth(_done(run, TRAINING[metric])) if metric in TRAINING else []
    return {"training": training, "validation": _done(run, metric)}


def panel(title: str, series: Mapping[str, Points]) -> Panel:
    """Return a chart of up to six lines, not all of them empty.

    Args:
        series: points by name, by rising steps.
    """
    shown = {name: points for name, points in series.items() if points}
    key = tuple(
        (Style(name, colour), f"{points[-1][1]:.5g}")
        for (name, points), colour in zip(shown.items(), SERIES, strict=False)
    )
    ends = (
        f"{style.name}: {value} at step {points[-1][0]:,}"
        for (style, value), points in zip(key, shown.values(), strict=True)
    )
    steps = [step for points in shown.values() for step, _ in (points[0], points[-1])]
    drawn = Chart(
        f"{title} over optimizer steps. {'; '.join(ends)}.",
        around(steps, share=0.02),
        around(settled(shown.values())),
        "",
        "optimizer steps",
        tuple(
            Line(style, thinned(points), says=style.name)
            for (style, _), points in zip(key, shown.values(), strict=True)
        ),
    )
    return Panel(title, drawn, key, wide=False)


def _done(run: Run, column: str) -> Points:
    """Return a column by optimizer steps done; a resumed run may have some steps twice."""
    return [(step + 1, value) for step, value in sorted(dict(run.series(column)).items())]


def _smooth(points: Points) -> Points:
    """Return trailing means over a share of the log points, as a report draws training scores."""
    window = max(1, len(points) // SMOOTHED)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    return [
        (points[i][0], (sums[i + 1] - sums[i + 1 - window]) / window)
        for i in range(window - 1, len(points))
    ]


def _measured(run: Run) -> Table:
    """Return the last diagnostics of the objective."""
    found = run.summary.get("jepa") or {}
    rows = tuple(
        (diagnostic.head, words.figure(found.get(name))) for name, diagnostic in DIAGNOSTICS.items()
    )
    return Table(
        ("last measurement", "value"), tuple(row for row in rows if row[1] != words.NOTHING)
    )
