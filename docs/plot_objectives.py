"""Draws docs/objectives/<name>.svg from the composed configs: what is predicted from what.

Top row: the way of the context to a prediction. Bottom row: the way of the target. A red bar stops
gradients. Regularizers hang on the tensor they read. Draws what docs/objectives.md shows. Run
by `make figures`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hydra
import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from hydra.core.global_hydra import GlobalHydra
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from jepa_lm.utils import schema
from jepa_lm.utils.config import resolve
from jepa_lm.utils.paths import CONF

FOLDER = Path(__file__).parent / "objectives"
SHOWN = re.compile(r"^!\[(\w+)\]\(objectives/\1\.svg\)$", re.MULTILINE)
"""A figure in docs/objectives.md, by the name of its objective."""
WIDTH, GAP, HEIGHT = 2.25, 0.4, 0.95
TOP, BOTTOM = 3.0, 0.6
COLOURS = {"data": "#eef1f5", "model": "#cfe3f6", "jepa": "#fbe3c8", "loss": "#f6cfd3"}
TAPS = {
    "final": "after final norm",
    "last": "before final norm",
    "embedding": "token table",
    "injector_latent": "injector's z",
    "injector_prediction": "injector's zhat",
}
NOTES = {
    "chunk": "z and zhat are part of the model, on a detached trunk; zhat is added to the hidden state"
}

MOVES = {
    "triple": ("from s to r", "from r to t"),
    "span": ("around a to b", "from a to b"),
}
"""Displacements that are compared, by form."""

Step = tuple[str, str, str]
"""Title, detail and kind of a box."""


def name_of(node: dict[str, Any]) -> str:
    """Class name of a part."""
    return str(node["_target_"]).rpartition(".")[2]


def detail(node: dict[str, Any], *keys: str) -> str:
    """The settings of a part that matter in a figure."""
    return ", ".join(f"{key} {node[key]}" for key in keys if node.get(key) is not None)


def tapped(tap: Any) -> str:
    """The hidden states that a tap reads, in words."""
    if isinstance(tap, dict):
        how = "mean of" if tap["join"] == "mean" else "side by side,"
        return f"{how} blocks {', '.join(map(str, tap['blocks']))}"
    return TAPS.get(tap, f"block {tap}")


def move(how: dict[str, Any], side: int) -> list[Step]:
    """A displacement as a box, if the alignment compares those."""
    return [("move", MOVES[how["form"]][side], "jepa")] if "form" in how else []


def pooling(node: dict[str, Any] | None) -> list[Step]:
    """A pooling as a box, if there is one."""
    return [] if node is None else [(name_of(node), detail(node, "size", "fraction"), "jepa")]


def projector(node: dict[str, Any] | None) -> list[Step]:
    """A projector as a box, if there is one."""
    return [] if node is None else [("projector", name_of(node), "jepa")]


def context_steps(jepa: dict[str, Any]) -> list[Step]:
    """Boxes from the text to a prediction."""
    context = jepa["context"]
    view = context.get("view")
    seen = "main pass" if view is None else f"{name_of(view)}, second pass"
    steps: list[Step] = [("tokens", seen, "data")]
    steps.append(("model", tapped(context["tap"]), "model"))
    steps += pooling(context.get("pooling")) + projector(jepa["projector"])
    steps += move(jepa["alignment"], 0)
    if jepa["predictor"] is not None:
        how = jepa["alignment"]
        told = " + ".join(how.get("alignments", ())) or detail(how, "offsets", "steps")
        told = told or name_of(how)
        if jepa["predictor"].get("_target_", "").endswith("Transition"):
            told += ", given the tokens"
        steps.append(("predictor", told, "jepa"))
    return steps


def target_steps(jepa: dict[str, Any]) -> list[Step]:
    """Boxes from the text to a target."""
    target, kind = jepa["target"], name_of(jepa["target"])
    view = (jepa["context"] if kind == "OtherLatent" else target).get("view")
    encoder = {
        "EMA": "moving average",
        "EmbeddingTable": "token table",
        "SamePass": "model, same pass",
        "OtherView": "model, own pass",
        "Frozen": "teacher, frozen",
        "BatchTarget": "what the data know",
        "OtherLatent": "model, same pass",
    }[kind]
    steps: list[Step] = [("tokens", "all" if view is None else name_of(view), "data")]
    read = {"BatchTarget": target.get("field"), "OtherLatent": "end of the other view"}
    steps.append((encoder, read.get(kind) or tapped(target["tap"]), "model"))
    steps += pooling(target.get("pooling")) + projector(jepa["projector"])
    steps += move(jepa["alignment"], 1)
    if target.get("normalisation") is not None:
        steps.append(("normalise", name_of(target["normalisation"]), "jepa"))
    return steps


def token_steps(tokens: dict[str, Any]) -> tuple[list[Step], list[Step]]:
    """Boxes from the text to logits, and to the tokens that are asked for."""
    view, head, token = tokens["view"], tokens["head"], tokens["token"]
    seen = "main pass" if view is None else f"{name_of(view)}, second pass"
    read = {
        "SharedHead": "the model's head",
        "LinearHead": "one more matrix",
        "ParallelBlocks": "a block for each, the model's head",
        "SequentialBlocks": "a block given the next token",
    }[name_of(head)]
    above: list[Step] = [("tokens", seen, "data"), ("model", tapped("final"), "model")]
    above.append(("logits", read, "jepa"))
    places = ", ".join(str(1 + k) for k in tokens["offsets"])
    about = f"{places} ahead" if "window" not in token else f"within {token['window']} ahead"
    return above, [("tokens", about, "data")]


def box(axes: Axes, x: float, y: float, step: Step) -> None:
    """A rounded box with its lower left corner at (x, y)."""
    title, about, kind = step
    shape = FancyBboxPatch(
        (x, y), WIDTH, HEIGHT, boxstyle="round,pad=0.04", fc=COLOURS[kind], ec="#445"
    )
    axes.add_patch(shape)
    axes.text(x + WIDTH / 2, y + HEIGHT * 0.66, title, ha="center", va="center", fontsize=10)
    axes.text(x + WIDTH / 2, y + HEIGHT * 0.28, about, ha="center", va="center", fontsize=7)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow between two points."""
    axes.annotate("", xy=end, xytext=start, arrowprops=dict(arrowstyle="->", color="#445"))


def row(axes: Axes, steps: list[Step], y: float, end: float) -> float:
    """A row of boxes that ends at x = `end`; returns where the last box begins."""
    xs = [end - (len(steps) - i) * (WIDTH + GAP) for i in range(len(steps))]
    for x, step in zip(xs, steps, strict=True):
        box(axes, x, y, step)
    for x in xs[1:]:
        arrow(axes, (x - GAP + 0.04, y + HEIGHT / 2), (x - 0.04, y + HEIGHT / 2))
    return xs[-1]


def framed(
    name: str, above: list[Step], below: list[Step], loss: Step, weight: float
) -> tuple[Axes, float, float, float]:
    """Both rows, the loss behind them and the title; returns where rows end and their last boxes begin."""
    end = max(len(above), len(below)) * (WIDTH + GAP)
    _, axes = plt.subplots(figsize=(0.78 * (end + WIDTH + 1.0), 4.0))
    last_above, last_below = row(axes, above, TOP, end), row(axes, below, BOTTOM, end)
    middle = (TOP + BOTTOM) / 2
    box(axes, end + 0.5, middle, loss)
    left = (end + 0.46, middle + HEIGHT / 2)
    arrow(axes, (last_above + WIDTH + 0.05, TOP + HEIGHT / 2), left)
    arrow(axes, (last_below + WIDTH + 0.05, BOTTOM + HEIGHT / 2), left)
    scale = f"x {weight:g} in the total loss"
    axes.text(end + 0.5 + WIDTH / 2, middle + HEIGHT + 0.15, scale, ha="center", fontsize=7)
    axes.text(end + 0.5 + WIDTH, BOTTOM - 0.3, NOTES.get(name, ""), ha="right", fontsize=7)
    axes.text(0.0, TOP + HEIGHT + 0.75, f"objective={name}", fontsize=12, weight="bold")
    axes.set_xlim(-0.2, end + WIDTH + 1.3)
    axes.set_ylim(-0.4, TOP + HEIGHT + 1.1)
    axes.axis("off")
    return axes, end, last_above, last_below


def draw(name: str, config: dict[str, Any]) -> None:
    """One objective."""
    tokens = config["tokens"]
    if "_target_" in tokens:
        above, below = token_steps(tokens)
        framed(name, above, below, (name_of(tokens["token"]), "", "loss"), tokens["weight"])
    else:
        draw_latent(name, config["jepa"])
    plt.savefig(FOLDER / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close()


def draw_latent(name: str, jepa: dict[str, Any]) -> None:
    """What a latent objective predicts from what."""
    norm = jepa["normalisation"]
    how = "" if norm is None else f"of {name_of(norm)}-normed"
    parts = jepa["distance"].get("distances", {"": jepa["distance"]})
    kinds = parts if len(parts) > 2 else map(name_of, parts.values())
    loss = (" + ".join(kinds), how, "loss")
    rows = context_steps(jepa), target_steps(jepa)
    axes, end, last_above, last_below = framed(name, *rows, loss, jepa["weight"])
    if jepa["target"].get("stop_gradient", True):
        x, y = end + 0.15, (BOTTOM + (TOP + BOTTOM) / 2 + HEIGHT) / 2
        axes.plot([x - 0.14, x + 0.1], [y + 0.14, y - 0.1], color="#c1121f", lw=4)
        axes.text(x + 0.2, y - 0.42, "stop-gradient", color="#c1121f", fontsize=8)
    for at, y, sign in (("prediction", TOP + HEIGHT, 1), ("target", BOTTOM, -1)):
        above_line = ("prediction", "normed_prediction", "context", "both")
        where = above_line if sign > 0 else ("target",)
        texts = [
            f"{n} x {r['weight']:g}, on {r['tensor']}"
            for n, r in jepa["regularizers"].items()
            if r["weight"] and r["tensor"] in where
        ]
        for i, text in enumerate(texts):
            x = (last_above if at == "prediction" else last_below) + WIDTH
            style: dict[str, Any] = dict(ha="right", va="center", fontsize=8, color="#7a1f3d")
            axes.text(x, y + sign * (0.28 + 0.24 * i), text, **style)


def main() -> None:
    """Draw them all."""
    schema.register()
    plt.rcParams["svg.hashsalt"] = "jepa_lm"
    FOLDER.mkdir(exist_ok=True)
    for name in SHOWN.findall((FOLDER.parent / "objectives.md").read_text(encoding="utf-8")):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            words = [f"objective={name}", "paths.run_dir=."]
            if "path: ???" in (CONF / "objective" / f"{name}.yaml").read_text(encoding="utf-8"):
                words.append("jepa.target.path=teacher")
            cfg = hydra.compose("train", overrides=words)
        draw(name, resolve(cfg))


if __name__ == "__main__":
    main()
