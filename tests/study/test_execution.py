"""Execution of a sweep around its jobs; nothing is trained."""

from __future__ import annotations

import json
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from jepa_lm.study import begun, execution
from jepa_lm.study.duration import Launching
from jepa_lm.study.manifest import Job, Manifest, load
from jepa_lm.utils import compiling
from jepa_lm.utils.locks import only_writer
from jepa_lm.utils.provenance import config_hash
from tests.study.pages import AGAINST
from tests.study.sweeps import paired, study


class Interrupted:
    """A launcher that is interrupted by Ctrl-C."""

    def launch(self, *args, **kwargs):
        raise KeyboardInterrupt


def test_a_signal_tells_how_to_go_on(tmp_path, capsys, monkeypatch):
    jobs = (Job("all/seed-1", ("seed=1",), "x"),)
    plan = Manifest(name="train", kind="sweep", match=None, command=(), jobs=jobs, groups=())
    configs = {"all/seed-1": {"ckpt_path": None, "logger": {}, "compile": False}}
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1", "hydra.sweep.dir=old"])
    with pytest.raises(KeyboardInterrupt):
        execution.run(plan, configs, tmp_path, Interrupted(), Launching(1, 1))
    assert capsys.readouterr().err.endswith(
        f"to go on: python train.py -m seed=1 hydra.sweep.dir={tmp_path}\n"
    )


def test_a_study_ends_with_its_verdict(tmp_path, capsys):
    folder = study(tmp_path, paired(1.7, 0.02), against=AGAINST)
    execution.report(load(folder), folder)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "objective=vicreg jepa.weight=0.1 hurts."
    assert told[1].startswith("Worse than weight 0: +0.02")
    assert told[-1] == f"report: {folder / 'report.html'}"


def finish(done, folder: str, status: str = "finished", **changed) -> None:
    """Write the files of a job as if it had run."""
    run = done.folder / folder
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    config = json.loads((done.folder / "configs.json").read_text())[folder] | changed
    (run / "config.json").write_text(json.dumps(config))
    val = {"bpb": 2.0, "nll": 3.0} if status == "finished" else None
    (run / "summary.json").write_text(json.dumps({"status": status, "val": val}))


@pytest.fixture
def keep_configs(monkeypatch):
    """Write the resolved configs of the jobs beside the plan."""
    check = begun.check_unchanged

    def also_write(manifest, configs, folder):
        check(manifest, configs, folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "configs.json").write_text(json.dumps(configs))

    monkeypatch.setattr(begun, "check_unchanged", also_write)


def compiled(found) -> list[bool | None]:
    """Return what each job is told; None if it decides for itself."""
    told = [{"compile=true", "compile=false"} & set(job) for job in found.launched]
    return [None if not word else word == {"compile=true"} for word in told]


def test_the_longest_job_decides_for_all_whether_they_are_compiled(
    plan, keep_configs, monkeypatch, tmp_path
):
    """Runs that differ in it differ in their arithmetic; the folder keeps the decision."""
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: True)
    monkeypatch.setattr(compiling, "CPU", compiling.Budget(tokens=5_000_000, seconds=600))
    words = ("-m", "objective=patch", "trainer.max_steps=10,20000")
    found = plan(*words)
    assert found.code == 0, found.error
    assert compiled(found) == [True, True]
    finish(found, "trainer.max_steps-10/seed-1337")
    finish(found, "trainer.max_steps-20000/seed-1337")
    assert plan(*words).launched == []  # their configs say what they were run with
    monkeypatch.setattr(compiling, "CPU", compiling.Budget(tokens=10**9, seconds=600))
    assert compiled(plan(*words, "seed=1,2")) == [True] * 4

    short, asked = tmp_path / "short", tmp_path / "asked"
    words = ("-m", "objective=patch", "trainer.max_steps=10,20")
    assert compiled(plan(*words, folder=short)) == [False, False]
    monkeypatch.setattr(compiling, "CPU", compiling.Budget(tokens=1, seconds=600))
    assert compiled(plan(*words, folder=short)) == [False, False]
    longer = ("-m", "objective=patch", "trainer.max_steps=10,20000")  # would compile, were it alone
    assert compiled(plan(*longer, folder=short)) == [False, False]
    asked_for = plan(*words, "compile=false", folder=asked)
    assert compiled(asked_for) == [None, None]  # the command says it for all
    assert compiled(plan(*longer, folder=asked)) == [False, False]
    asked = tmp_path / "asked for"
    plan(*words, "compile=true", folder=asked)
    monkeypatch.setattr(compiling, "CPU", compiling.Budget(tokens=10**9, seconds=600))
    assert compiled(plan(*longer, folder=asked)) == [True, True]  # those that join, too


def test_a_folder_from_before_a_no_was_recorded_keeps_its_configs(
    plan, keep_configs, monkeypatch, tmp_path
):
    """Its jobs ran with `compile: null`; those that join are told what that meant."""
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: True)
    words = ("-m", "objective=patch")
    plan(*words, "trainer.max_steps=10,20", folder=tmp_path)
    record = json.loads((tmp_path / "study.json").read_text())
    assert record.pop("compiled") is False
    configs = json.loads((tmp_path / "configs.json").read_text())
    for job in record["jobs"]:
        job["overrides"].remove("compile=false")
        job["config_hash"] = config_hash({**configs[job["folder"]], "compile": None})
    (tmp_path / "study.json").write_text(json.dumps(record))
    for _ in range(3):  # the plan of each time is saved
        found = plan(*words, "trainer.max_steps=10,20,20000", folder=tmp_path)
        assert compiled(found) == [None, None, False]


def test_without_a_compiler_a_sweep_says_so_once_and_compiles_no_job(plan, monkeypatch):
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: False)
    monkeypatch.setattr(compiling, "CPU", compiling.Budget(tokens=1, seconds=600))
    found = plan("-m", "objective=patch", "seed=1,2,3")
    assert found.code == 0, found.error
    assert ["compile=false" in job for job in found.launched] == [True] * 3
    assert sum("needs a C++ compiler" in line for line in found.told) == 1


def test_finished_jobs_stay_begun_ones_go_on_failed_ones_again(plan, keep_configs):
    words = ("-m", "objective=patch", "jepa.weight=0.05,0.1", "seed=1,2")
    first = plan(*words)
    finish(first, "jepa.weight-0.05/seed-1")
    finish(first, "jepa.weight-0.05/seed-2", "interrupted")
    finish(first, "jepa.weight-0.1/seed-1", "failed")
    again = plan(*words)
    assert again.code == 0, again.error
    subdirs = [w.split("=")[1] for job in again.launched for w in job if "sweep.subdir" in w]
    assert subdirs == [
        "jepa.weight-0.05/seed-2",
        "jepa.weight-0.1/seed-1",
        "jepa.weight-0.1/seed-2",
    ]
    assert ["ckpt_path=auto" in job for job in again.launched] == [True, True, False]


def test_a_changed_job_is_refused_with_the_difference(plan, keep_configs):
    words = ("-m", "objective=patch", "jepa.weight=0.05,0.1", "seed=1")
    first = plan(*words)
    finish(first, "jepa.weight-0.1/seed-1")
    again = plan(*words, "trainer.max_steps=9")
    assert again.code == 2
    assert "jepa.weight-0.1/seed-1 was run with another config" in again.error
    assert "trainer.max_steps was 6, now 9" in again.error
    assert not again.launched


def test_more_values_are_more_jobs(plan, keep_configs):
    first = plan("-m", "objective=patch", "jepa.weight=0.05,0.1", "seed=1")
    finish(first, "jepa.weight-0.1/seed-1")
    more = plan("-m", "objective=patch", "jepa.weight=0.05,0.1,0.2", "seed=1,2")
    assert len(more.launched) == 5, (
        "the one that is finished stays, though seeds were not swept then"
    )


def test_a_second_sweep_in_a_folder_is_refused_while_the_first_writes(plan, tmp_path):
    """Two sweeps in one folder would overwrite each other's records."""
    with only_writer(tmp_path / "sweep", "x"):
        done = plan("-m", "seed=1,2")
        assert done.code == 2
        assert done.told == [
            f"error: hydra.sweep.dir={tmp_path}/sweep: another process is writing there; wait until it has "
            "finished, or name another folder"
        ]
    assert plan("-m", "seed=1,2").code == 0


def test_damaged_records_of_a_job_are_named(plan, keep_configs):
    first = plan("-m", "objective=patch", "seed=1")
    finish(first, "all/seed-1")
    (first.folder / "all/seed-1/config.json").write_text('{"data": {}}', encoding="utf-8")
    again = plan("-m", "objective=patch", "seed=1")
    assert again.code == 2
    assert "the records of all/seed-1 are damaged (config.json has no trainer)" in again.error


def test_a_folder_holds_one_sweep_or_study(plan):
    first = plan("study=ablation", "objective=patch", "seed=1,2,3")
    other = plan("-m", "objective=patch", "seed=1,2,3")
    assert other.code == 2
    assert "holds the study ablation, but this is the sweep train" in other.error
    assert not other.launched
    assert other.plan == first.plan


@pytest.mark.parametrize(("seeds", "few"), [("1,2", True), ("1,2,3", False)])
def test_a_study_of_few_seeds_is_warned_of(plan, seeds, few):
    done = plan("study=ablation", "objective=patch", f"seed={seeds}")
    warned = [line for line in done.told if "a verdict needs 3 or more" in line]
    assert [line.startswith("warning: seed: 2 planned;") for line in warned] == [True] * few


def test_words_of_a_job_are_what_they_say(plan, tmp_path):
    """An apostrophe in the sweep's folder, and names that W&B would not accept."""
    folder = tmp_path / ("it's ${x} " + "a" * 150)
    done = plan("-m", "logger=wandb", "seed=1", folder=folder, quote=True)
    assert done.code == 0, done.error
    (job,) = done.launched
    words = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(job)}
    config = OmegaConf.create({"group": words["logger.wandb.group"]})
    group = OmegaConf.to_container(config, resolve=True)["group"]
    assert group.startswith("train it's ${x} aaa")
    assert len(group) == 128


def test_wandb_gets_the_study_and_the_arm(plan):
    done = plan("study=ablation", "objective=lewm", "logger=wandb", "seed=1,2")
    job = next(job for job in done.launched if "hydra.sweep.subdir=placebo/seed-2" in job)
    assert 'logger.wandb.group="ablation sweep"' in job
    assert 'logger.wandb.name="placebo/seed-2"' in job
