"""The dashboard in its serialised form, and the sweep file as W&B's agent reads it."""

from __future__ import annotations

import json

import pytest
import yaml

from jepa_lm.data.synthetic.path_star import PathStar
from jepa_lm.study import dashboard
from jepa_lm.utils.config import check, resolve
from jepa_lm.utils.metrics import LOSSES, METRICS
from jepa_lm.utils.paths import CONF
from tests.conftest import REPO

pytest.importorskip("wandb")


def test_the_sweep_file_starts_training_with_arguments_it_takes(small):
    """W&B's own code builds the command."""
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load((REPO / "docs" / "wandb_sweep.yaml").read_text())
    assert sweep["metric"] == {"name": "final/bpb", "goal": "minimize"}
    chosen = {
        name: {"value": spec["values"][-1] if "values" in spec else spec["max"]}
        for name, spec in sweep["parameters"].items()
    }
    words = {
        **utils.create_sweep_command_args({"args": chosen}),
        "env": ["/usr/bin/env"],
        "interpreter": ["python"],
        "program": [sweep["program"]],
    }
    command = []
    for part in utils.create_sweep_command(sweep["command"]):
        macro = part.startswith("${") and part.endswith("}")
        command += words[part[2:-1]] if macro else [part]
    assert command[:3] == ["/usr/bin/env", "python", "train.py"]
    config = resolve(small(*command[3:]))
    check(config)
    assert config["jepa"]["weight"] == 0.3
    assert config["optimizer"]["groups"]["matrices"]["lr"] == 0.04
    assert (config["seed"], config["ckpt_path"]) == (3, "auto")
    assert config["logger"]["wandb"]["group"] == "weight-of-the-latent-loss"


@pytest.fixture(scope="module")
def panels() -> dict[str, dict]:
    """Return the panels of the workspace by title, as they are sent to W&B."""
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces (extra: dashboard) is missing")
    spec = json.loads(dashboard.serialised(dashboard.workspace("me", "jepa_lm")))
    found = {}
    for section in spec["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            config = panel["config"]
            found[config.get("chartTitle", panel["viewType"])] = {**panel, **config}
    return found


def test_the_dashboard_draws_scores_by_run_group_and_weight(panels):
    for axis, x in (("steps", "trainer/global_step"), ("seconds of training", "train/seconds")):
        for who, by in (
            ("each run", None),
            ("mean of each group", "group"),
            ("mean of each jepa.weight", "jepa.value.weight"),
        ):
            panel = panels[f"Bits per byte over {axis}, {who}"]
            assert (panel["xAxis"], panel["metrics"]) == (x, ["val/bpb"])
            assert panel.get("groupBy") == by
    scatter = panels["jepa.weight and the best bits per byte"]
    assert scatter["xAxis"] == "config:jepa.value.weight"
    assert scatter["yAxis"] == "summary:val/bpb.min"
    columns = [c["accessor"] for c in panels["From settings to the score"]["columns"]]
    assert columns[0] == "config:jepa.value.weight"
    assert columns[-1] == "summary:final/bpb"


def test_every_metric_of_the_dashboard_is_logged(panels, logged):
    """Except metrics that this model and objective do not have."""
    known = {key for row in logged.run.history for key in row}
    drawn = {
        m for p in panels.values() if "Line" in p["viewType"] for m in (*p["metrics"], p["xAxis"])
    }
    assert {"train/ce", "jepa/effective_rank", "jepa/cosine", "jepa/trunk_gradient_share"} <= drawn
    assert {"train/gradient_norm", "train/tokens_per_second", "jepa/loss"} <= drawn
    elsewhere = {"jepa/sigreg", "jepa/std", "jepa/spectrum", "lr-MuonAdamW/head"}
    tasks = {
        "val/above_floor",
        f"val/{PathStar.margin_name}",
        *(m for m in METRICS if m not in LOSSES),
    }  # of rows that ask something
    assert drawn - known - tasks == elsewhere
    assert {"val/nll", "val/solved", "val/answer_accuracy", "val/probe_root"} <= drawn
    for metric in elsewhere:
        name = metric.rpartition("/")[2]
        assert any(f"  {name}:\n" in path.read_text() for path in CONF.rglob("*.yaml"))
    in_summary = [c["accessor"] for c in panels["From settings to the score"]["columns"]]
    for accessor in in_summary:
        kind, _, name = accessor.partition(":")
        assert kind == "config" or name in logged.run.summary


def test_the_dashboard_prints_without_an_account(capsys):
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces (extra: dashboard) is missing")
    assert dashboard.main(["--entity", "me", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["section"]
