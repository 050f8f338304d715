"""Exports during training, on a full disk and of failed runs: a failure never costs an earlier export."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from jepa_lm.artifact import loaded_model as loaded
from jepa_lm.artifact import round_trip
from jepa_lm.artifact.card import in_markdown, model_card, run_records, submission
from jepa_lm.artifact.loaded_model import held_model_file
from jepa_lm.commands import export as export_module
from jepa_lm.model.checkpoint import find_checkpoint
from jepa_lm.run import evaluate, export
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.locks import only_writer
from jepa_lm.utils.trusted import Trust

QUICK = ("export.codecs=[zlib]", "export.protocols=[]")
WHOLE = ("export.codecs=[zlib]", "quantization=none", "export.max_tokens=500")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def changed(trained, tmp_path):
    """changed(name, change) saves the shared run's checkpoint with changed weights."""

    def make(path: Path, change) -> Path:
        checkpoint = torch.load(trained.checkpoint, weights_only=True)
        change(checkpoint["state_dict"]["model.embedding.table.weight"])
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
        return path

    return make


def test_on_a_full_disk_the_earlier_export_stays_as_it_was(exporting, monkeypatch):
    """This holds whichever file no longer fits."""
    exporting(*QUICK)
    before = files(exporting.folder)
    for room, name in enumerate(("artifact.zlib", "export.json", "submission.json")):
        left = iter(range(room))

        def full(_, left=left):
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            exporting(*QUICK, "quantization=int4")
        assert caught.value.filename == str(exporting.folder / name)
        assert files(exporting.folder) == before


def test_an_export_beside_a_training_compares_with_the_checkpoint_it_was_made_of(
    exporting, trained, compose, tmp_path, monkeypatch, changed
):
    """By the time the fresh process looks, training has replaced last.ckpt and deleted the one before."""
    run = tmp_path / "training"
    shutil.copytree(trained.folder, run)
    asked = round_trip._asked

    def later(settings):
        newer = changed(run / "newer", lambda weight: weight.add_(0.5))
        for path in (run / "checkpoints").glob("step-*"):
            path.unlink()
        os.replace(newer, run / "checkpoints" / "last.ckpt")
        return asked(settings)

    monkeypatch.setattr(round_trip, "_asked", later)
    export(compose("export", f"ckpt_path={run}", *WHOLE))
    account = exporting.account()
    assert account["round_trip"]["standard"]["bpb_loss"] == 0
    assert account["source"] == str(run / "checkpoints" / "last.ckpt")


def test_a_checkpoint_that_changes_while_it_is_exported_is_refused(
    exporting, trained, monkeypatch, changed
):
    """Copying onto the same file would do this; a second name (hard link) does not protect against it."""
    asked, before = round_trip._asked, trained.checkpoint.read_bytes()

    def later(settings):
        other = changed(exporting.folder / "other", lambda weight: weight.add_(0.5))
        settings["checkpoint"][2] = str(other)
        return asked(settings)

    monkeypatch.setattr(round_trip, "_asked", later)
    with pytest.raises(UserError, match=r"last\.ckpt: changed while it was being exported"):
        exporting(*WHOLE)
    assert trained.checkpoint.read_bytes() == before
    assert not list(exporting.folder.glob("artifact.*"))


def test_what_is_found_is_looked_for_again_when_a_training_has_removed_it(
    trained, tmp_path, monkeypatch
):
    found = iter([("ckpt_path", tmp_path / "gone.ckpt"), ("ckpt_path", trained.checkpoint)])
    monkeypatch.setattr(loaded, "find_model_file", lambda *_: next(found))
    with held_model_file("run", None, tmp_path, Trust()) as kept:
        assert kept.path == trained.checkpoint
        assert kept.file.samefile(trained.checkpoint)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_pruned_while_it_is_looked_at_is_not_damaged(
    trained, tmp_path, monkeypatch, capsys
):
    from jepa_lm.model import checkpoint

    first, second = (tmp_path / "checkpoints" / f"step-{n}.ckpt" for n in (6, 7))
    first.parent.mkdir()
    shutil.copyfile(trained.checkpoint, first)
    damage = checkpoint.damage

    def prunes(path):
        if not second.exists():
            shutil.copyfile(trained.checkpoint, second)
            path.unlink()
        return damage(path)

    monkeypatch.setattr(checkpoint, "damage", prunes)
    assert find_checkpoint(str(tmp_path)) == second
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_neither_exported_nor_scored(
    compose, tmp_path, changed, value
):
    path = changed(tmp_path / "bad.ckpt", lambda weight: weight[0].fill_(value))
    for command, run in (("export", export), ("eval", evaluate)):
        with pytest.raises(
            UserError, match=r"bad\.ckpt: embedding\.table\.weight holds values that"
        ):
            run(compose(command, f"ckpt_path={path}"))
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]


def test_an_export_that_cannot_be_shown_is_whole(exporting, monkeypatch, capsys):
    monkeypatch.setattr(export_module, "print_account", _raises)
    account = exporting(*QUICK)
    assert account["bytes"] == (exporting.folder / "artifact.zlib").stat().st_size
    assert "warning: the account cannot be shown (ValueError: x)" in capsys.readouterr().err


def test_two_exports_or_evaluations_in_one_folder_are_refused_in_one_line(
    trained, compose, tmp_path
):
    with only_writer(tmp_path / "run", "hydra.run.dir"):
        for command, run in (("export", export), ("eval", evaluate)):
            with pytest.raises(UserError, match=r"^hydra\.run\.dir=.*another process is writing"):
                run(compose(command, f"ckpt_path={trained.folder}"))


ODD_SUMMARIES = [
    {"status": "failed", "error": "no space"},
    {"status": "interrupted", "seconds": None, "parameters": None, "git": None, "versions": None},
    {"status": 5, "seconds": "1", "parameters": [1], "git": "abc", "versions": ["torch"]},
    {"status": "finished", "seconds": 1e400, "parameters": {"shipped": "1"}, "git": {}},
    {
        "seconds": 10**400,
        "parameters": {"shipped": True, "training_only": 2},
        "versions": {"a": {}},
    },
    {"status": "x" * 10_000, "config_hash": {"a": 1}, "git": {"commit": ["x"], "dirty": "no"}},
]


@pytest.mark.parametrize("summary", ODD_SUMMARIES)
def test_a_card_is_made_of_any_summary(exported, trained, tmp_path, summary):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    records = run_records(folder / "checkpoints" / "last.ckpt")
    config = _run_config(trained)
    said = submission(
        dict.fromkeys(("author", "github_id", "name", "blurb")), exported.account, config, records
    )
    card = model_card(said, exported.account, config, records)
    assert ("There is no finished `summary.json`" in card) == (summary.get("status") != "finished")
    if summary.get("status") == "failed":
        assert "| status | failed |" in card
        assert said["training_status"] == "failed"
    assert len(card) < 10_000


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("summary.json", b"{", "cannot be read"),
        ("summary.json", b"[" * 200_000, "cannot be read"),
        ("summary.json", b"[1]", "holds a list"),
        ("summary.json", b"\xff\xfe{}", "cannot be read"),
        (".hydra/overrides.yaml", b"- &a [x]\n- *a", "contains an alias"),
        (".hydra/overrides.yaml", b"[" * 60_000, "cannot be read"),
        (".hydra/overrides.yaml", b"- a\n" * 60_000, "more than 65536 bytes"),
        (".hydra/overrides.yaml", b"a: b", "holds a dict"),
        (".hydra/overrides.yaml", b"[1, 2]", "holds something other than words"),
        (".hydra/overrides.yaml", b"- !!python/object/apply:os.getpid []", "cannot be read"),
    ],
)
def test_records_that_cannot_be_read_are_missing_with_a_word(
    tmp_path, capsys, name, content, reason
):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert run_records(tmp_path / "checkpoints" / "last.ckpt") == {
        "summary": None,
        "overrides": None,
    }
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {path}: ")
    assert reason in warning
    assert warning.count("\n") == 1


def test_no_text_of_a_record_is_markup_of_the_card(exported, trained, tmp_path):
    hostile = "a\n# b | c <script> `x` [l](u) {{ 7*7 }} \x1b[31m"
    records = {
        "summary": {"status": hostile},
        "overrides": ["task_name=a b", "x=$(reboot)", "y=1\n# z"],
    }
    given = dict.fromkeys(("author", "github_id", "blurb")) | {"name": hostile}
    said = submission(given, exported.account, _run_config(trained), records)
    card = model_card(said, exported.account, _run_config(trained), records)
    shown = in_markdown(hostile)
    assert shown == r"a # b \| c &lt;script&gt; \`x\` [l]\(u) {{ 7\*7 }} \\x1b[31m"
    assert card.startswith(f"# {shown}\n")
    assert f"| status | {shown} |" in card
    assert "    python train.py 'task_name=a b' 'x=$(reboot)' $'y=1\\n# z'\n" in card
    assert "\x1b" not in card


def _raises(*_):
    raise ValueError("x")


def _run_config(trained) -> dict:
    return torch.load(trained.checkpoint, weights_only=True)["hyper_parameters"]["config"]
