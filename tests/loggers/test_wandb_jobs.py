"""W&B runs of commands other than training: evaluation, export, report."""

from __future__ import annotations

import json

import pytest

from jepa_lm.run import evaluate, export
from jepa_lm.study.attach import attach_report
from jepa_lm.utils.errors import UserError
from tests import wandb_file
from tests.conftest import OFFLINE

pytest.importorskip("wandb")


@pytest.mark.usefixtures("answers_here")
def test_evaluation_and_export_stand_beside_their_training(logged, compose, tmp_path):
    cheap = ("eval.audit=false", "eval.baselines=false")
    out, of_file = tmp_path / "export", tmp_path / "of_file"
    common = (*OFFLINE, "tags=[c]")
    evaluate(compose("eval", f"ckpt_path={logged.folder}", *common, *cheap))
    few = ("export.protocols=[]", "export.codecs=[zlib]")
    export(compose("export", f"ckpt_path={logged.folder}", *common, *few, run_dir=out))
    evaluate(compose("eval", f"artifact_path={out}", *common, *cheap, run_dir=of_file))
    runs = [wandb_file.runs_in(folder)[0] for folder in (tmp_path / "run", out, of_file)]
    assert [run.job_type for run in runs] == ["eval", "export", "eval"]
    for run in runs:
        assert (run.group, run.name) == ("weights", "vicreg 0.1 seed 1")
        assert (run.project, run.tags, run.exit_code) == ("jepa_lm", {"a", "b", "c"}, 0)
    scored, exported, _ = runs
    written = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert scored.summary["bpb"] == pytest.approx(written["bpb"])
    assert scored.config["run"]["jepa"]["weight"] == 0.12
    account = json.loads((out / "export.json").read_text())
    assert exported.summary["total"] == account["total"]
    assert "tensors" not in exported.summary  # a table, in export.json
    name = account["artifact"].rpartition("/")[2]
    assert exported.artifacts == {"model": {name, "model_card.md"}}
    assert "export.json" in exported.files


@pytest.mark.slow
def test_an_export_over_its_cap_is_marked_failed(logged, compose, tmp_path):
    few = ("export.protocols=[]", "export.codecs=[zlib]", "export.cap_bytes=1000")
    with pytest.raises(UserError, match="over by"):
        export(compose("export", f"ckpt_path={logged.folder}", *OFFLINE, *few))
    (run,) = wandb_file.runs_in(tmp_path / "run")
    assert run.exit_code == 1
    assert run.summary["fits"] is False
    assert "over by" in run.summary["error"]


def test_a_report_is_one_run_however_often_it_is_made(tmp_path):
    html = tmp_path / "report.html"
    html.write_text("<h1>weights</h1>")
    settings = {"project": "p", "entity": None, "tags": ["a"], "offline": True}
    for _ in range(2):
        attach_report(html, settings=settings, group="weights")
    first, second = wandb_file.runs_in(tmp_path)
    assert first.id == second.id
    for run in (first, second):
        assert (run.project, run.group, run.job_type) == ("p", "weights", "report")
        assert run.exit_code == 0
        assert run.history[0]["report"]["_type"] == "html-file"
        assert "report.html" in run.files
