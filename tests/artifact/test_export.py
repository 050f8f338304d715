"""Output of export.py: an honest account, the format of every tensor, and the artifact's own score."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jepa_lm.artifact import layout
from jepa_lm.artifact.loading import load_artifact
from jepa_lm.artifact.size import SCORING, code_bytes, minify, write_minified
from jepa_lm.run import export
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.errors import LossError, OverCapError, UserError
from tests.conftest import REPO

QUICK = ("export.codecs=[zlib]", "export.protocols=[]")


def test_account_is_of_the_files_on_disk(exported):
    account = exported.account
    assert account["bytes"] == exported.file.stat().st_size
    source = (REPO / "jepa_lm").glob("**/*.py")
    assert account["code_bytes"] == sum(len(path.read_bytes()) for path in source)
    assert account["total"] == account["bytes"] + account["code_bytes"]
    assert account["headroom"] == 16_000_000 - account["total"]
    assert account["compressors"][account["codecs"][0]] == account["bytes"]
    assert account["bytes"] == min(account["compressors"].values())
    formats = {row["name"]: row["format"] for row in account["tensors"]}
    assert formats["embedding.table.weight"] == "int8"
    assert formats["backbone.blocks.0.attention.query.weight"] == "int8"
    assert formats["backbone.skip_weights"] == "float16"
    values = {row["name"]: row["values"] for row in account["tensors"]}
    assert sum(values.values()) == account["parameters"]
    assert (
        account["predicted"]["off"]
        == account["predicted"]["bytes"] / (account["bytes"] - account["tokenizer_bytes"]) - 1
    )


def test_the_file_is_scored_beside_its_checkpoint(exported, trained):
    scores = exported.account["round_trip"]["standard"]
    assert scores["checkpoint"]["bpb"] == pytest.approx(trained.bpb, abs=1e-6)
    assert scores["artifact"]["bpb"] != scores["checkpoint"]["bpb"]
    loss = scores["artifact"]["bpb"] - scores["checkpoint"]["bpb"]
    assert scores["bpb_loss"] == pytest.approx(loss)
    assert abs(loss) < 0.005
    assert exported.account["scored_all"] is True


def test_sliding_and_fewer_tokens_on_request(exporting):
    few = ("export.max_tokens=900", "export.stride=16", QUICK[0])
    account = exporting("export.protocols=[standard,sliding]", *few)
    assert account["round_trip"].keys() == {"standard", "sliding"}
    assert account["round_trip"]["sliding"]["artifact"]["tokens"] == 899
    assert account["scored_all"] is False
    card = (exporting.folder / "model_card.md").read_text()
    assert "Only the first 900 tokens" in card
    said = json.loads((exporting.folder / "submission.json").read_text())
    assert said["val_protocol"] == "sliding"
    assert said["val_bpb"] == account["round_trip"]["sliding"]["artifact"]["bpb"]
    assert said["val_complete"] is False


def test_too_great_a_loss_fails_the_command_and_keeps_the_files(exporting):
    coarse = ("quantization=int4", "quantization.rules.weights.format.bits=2", *QUICK[:1])
    words = r"export\.max_bpb_loss=-1: the artifact scores \d\.\d+ \(standard\)"
    with pytest.raises(LossError, match=words) as caught:
        exporting(*coarse, "export.max_bpb_loss=-1")
    assert caught.value.exit_code == 2
    assert -1 < exporting.account()["round_trip"]["standard"]["bpb_loss"] < 1
    assert (exporting.folder / "artifact.zlib").is_file()


def test_a_tensor_lost_on_the_way_to_the_file_fails_the_command(exporting, monkeypatch):
    """Planted bug: the writing process still holds every weight and would not notice."""
    streams_of = layout.streams_of

    def loses_one(tensors, *more):
        rest = {name: t for name, t in tensors.items() if name != "backbone.skip_weights"}
        return streams_of(rest, *more)

    monkeypatch.setattr(layout, "streams_of", loses_one)
    where = exporting.folder / "artifact.zlib"
    words = rf"a fresh process cannot load and score {where}: artifact_path={where}: .*skip_weights"
    with pytest.raises(UserError, match=words):
        exporting("export.codecs=[zlib]", "export.protocols=[standard]")
    assert [path.name for path in exporting.folder.iterdir()] == [".lock"]


@pytest.mark.slow
def test_over_the_cap_exits_three_and_names_measured_ways(exporting, trained):
    whole = exporting(*QUICK, "export.code=minified")
    cap = whole["total"] - whole["bytes"] // 5
    words = rf"export\.cap_bytes={cap}: artifact \d+ \+ code \d+ = \d+ bytes, over by \d+; it would"
    with pytest.raises(OverCapError, match=words) as caught:
        exporting(*QUICK, "export.code=minified", f"export.cap_bytes={cap}")
    assert caught.value.exit_code == 3
    account = exporting.account()
    assert account["fits"] is False
    ways = account["ways_under"]
    assert 1 <= len(ways) <= 3
    losses = [way["bpb_loss"] for way in ways]
    assert losses == sorted(losses)
    (override,) = ways[0]["overrides"]
    again = exporting(*QUICK, "export.code=minified", f"export.cap_bytes={cap}", override)
    assert again["fits"]
    # Headers differ by a few bytes; the weights are the same.
    assert again["total"] == pytest.approx(ways[0]["total"], abs=300)


@pytest.mark.slow
def test_minified_code_is_a_way_that_loses_nothing(exporting):
    full = exporting(*QUICK)
    with pytest.raises(OverCapError, match=r"export\.code=minified"):
        exporting(*QUICK, f"export.cap_bytes={full['total'] - 1}")
    (first, *_) = exporting.account()["ways_under"]
    assert first["overrides"] == ["export.code=minified"]
    assert first["bpb_loss"] == 0


@pytest.mark.slow
def test_nothing_fits_is_said(exporting):
    with pytest.raises(
        OverCapError, match="the code alone exceeds the cap; raise it, or count less code"
    ):
        exporting(*QUICK, "export.cap_bytes=1000")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("export.code=small", r"export\.code=small: one of full, minified, inference"),
        ("export.streams=two", r"export\.streams=two: one of single, per_format"),
        ("export.codecs=[rar]", r"export\.codecs=rar: one of brotli, lzma"),
        ("export.codecs=[]", r"export\.codecs=\[\]: at least one"),
        ("export.protocols=[stream]", r"export\.protocols=stream: standard, sliding"),
        ("export.max_tokens=1", r"export\.max_tokens=1: at least 2"),
        ("+export.colour=red", r"export\.colour: the config has no such setting"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_read(compose, override, words):
    with pytest.raises(UserError, match=words):
        export(compose("export", "ckpt_path=last", override))


def test_a_stride_that_the_windows_cannot_have_is_refused_at_once(exporting):
    with pytest.raises(UserError, match=r"export\.stride=64: 1 to the window length 32"):
        exporting("export.protocols=[sliding]", "export.stride=64")
    assert [path.name for path in exporting.folder.iterdir()] == [".lock"]


def test_streams_per_format_hold_the_same_model(exporting):
    one = exporting(*QUICK)
    first = load_artifact(exporting.folder / "artifact.zlib").model.state_dict()
    many = exporting(*QUICK, "export.streams=per_format", "export.codecs=[zlib,zstd]")
    assert len(one["codecs"]) == 1
    assert len(many["codecs"]) > 1
    (path,) = exporting.folder.glob("artifact.*")
    second = load_artifact(path).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_submission_and_card_say_what_the_records_say(exported, trained):
    account = exported.account
    summary = json.loads((trained.folder / "summary.json").read_text())
    said = json.loads((exported.folder / "submission.json").read_text())
    assert said["bytes_total"] == account["total"]
    assert said["bytes_code"] + said["bytes_model"] == said["bytes_total"]
    assert said["val_loss"] == account["round_trip"]["standard"]["artifact"]["nll"]
    assert said["config_hash"] == summary["config_hash"]
    assert said["training_seconds"] == summary["seconds"]
    assert said["git"] == summary["git"]
    assert said["author"] is None
    card = (exported.folder / "model_card.md").read_text()
    for figure in (
        f"{account['bytes']:,}",
        f"{account['total']:,}",
        f"{account['round_trip']['standard']['artifact']['bpb']:.4f}",
        f"| seed | {summary['seed']} |",
        summary["config_hash"],
        "cross entropy only",
    ):
        assert figure in card
    assert "{{" not in card


def test_a_card_without_a_summary_says_so(exporting, trained, compose, tmp_path):
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(trained.checkpoint.read_bytes())
    given = ("submission.author=Ada", "submission.name=Engine")
    export(compose("export", f"ckpt_path={alone}", *QUICK, *given))
    card = (tmp_path / "run" / "model_card.md").read_text()
    assert card.startswith("# Engine\n")
    assert "There is no finished `summary.json`" in card
    assert "Not scored at export" in card
    said = json.loads((tmp_path / "run" / "submission.json").read_text())
    assert said["author"] == "Ada"
    assert said["val_bpb"] is None
    assert said["training_seconds"] is None


def test_a_change_to_the_runs_own_policy(exporting):
    account = exporting(*QUICK, "+quantization.rules.weights.format.bits=5")
    assert {row["format"] for row in account["tensors"]} == {"int5", "float16"}


def score_elsewhere(package: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Return the output of a written package's scoring program, run where only that package exists."""
    return subprocess.run(
        [sys.executable, "-m", SCORING, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=package.parent,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
    )


@pytest.mark.slow
def test_code_for_inference_loads_and_scores_the_file_alone(exporting, trained):
    """Trainer, objectives, optimizers and data preparation are absent from the written package."""
    account = exporting(
        "export.codecs=[zlib]", "export.code=inference", "export.protocols=[standard]"
    )
    package = exporting.folder / "code" / "jepa_lm"
    assert account["code_bytes"] == code_bytes(package)
    assert not [
        path
        for path in ("objective", "optim", "study", "training", "commands")
        if (package / path).exists()
    ]
    data = build("data", resolve(trained.config)["data"])
    data.prepare_data()
    words = (
        account["artifact"],
        *data.prepared.val,
        data.prepared.val[0].with_name("tokenizer.model"),
    )
    done = score_elsewhere(package, *words)
    assert done.returncode == 0, done.stderr
    scored = account["round_trip"]["standard"]["artifact"]
    assert json.loads(done.stdout) == pytest.approx(scored)
    # Planted bug: a missing module must not be imported from somewhere else.
    (package / "data" / "windows.py").unlink()
    missing = score_elsewhere(package, *words)
    assert missing.returncode == 1
    assert "No module named 'jepa_lm.data.windows'" in missing.stderr


@pytest.mark.slow
def test_minified_code_is_smaller_and_loads_the_file(exported, tmp_path):
    package = write_minified(tmp_path)
    assert code_bytes(package) < 0.75 * code_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "jepa_lm.artifact", str(exported.file)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert "bits per weight" in done.stdout
    where = "import jepa_lm; print(jepa_lm.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
    )
    assert found.stdout.strip() == str(package / "__init__.py")


def test_minified_source_is_the_same_program():
    source = '''
"""Module."""
x: int = 1  # comment
"""Of x."""
def f(a, b=2):
    """Doc."""
    if a:
        text = """two
        lines"""
        return text
    return f"{b!r:>4}"
class C:
    """Only a docstring."""
'''
    small = minify(source)
    assert "Doc" not in small
    assert "comment" not in small
    before, after = {}, {}
    exec(source, before)
    exec(small, after)
    assert before["f"](1) == after["f"](1) == "two\n        lines"
    assert before["f"](0) == after["f"](0)
    assert after["C"]()
