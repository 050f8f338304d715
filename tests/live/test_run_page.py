"""run.html, the page that a finished run keeps."""

from __future__ import annotations

import json
import re

import pytest

from jepa_lm.live.run_page import keep_page, panel
from jepa_lm.utils.paths import PAGE_FILE, SAMPLE_FILE
from tests.study.pages import Element, read
from tests.study.sweeps import write_run

FULL = {
    "flops_per_token": {"model": 1000, "objective": 500},
    "memory_bytes": 3 << 20,
    "passes": 1.25,
    "val": {"ema": {"bpb": 1.6}},
    "unfinished": ["schedule lr: a phase of 500 steps had not ended after 400"],
}


@pytest.fixture
def folder(tmp_path):
    folder = write_run(tmp_path / "run", 1.7, summary=FULL)
    words = ["objective=vicreg", "task_name=it's <b>mine</b>"]
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(words))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    return folder


def page(folder, sample: str = "", latents: tuple[str, ...] = ()) -> Element:
    keep_page(folder, sample, latents, finished=True)
    return read((folder / PAGE_FILE).read_text())


def terms(section: Element) -> dict[str, str]:
    names = [element.text for element in section.all("dt")]
    return dict(zip(names, [element.text for element in section.all("dd")], strict=True))


def test_what_the_page_says(folder):
    found = page(folder, "Anne <b>said</b>\n\nno more", ("explains 30 % of the variance",))
    assert found.one("h1").text == "vicreg, seed 1: 1.7000 bits per byte"
    about = terms(found.one("section", id="verdict"))
    assert about["Objective"] == "vicreg (LatentPrediction), weight 0.1."
    assert about["Device"] == "cpu, precision 32-true, 1 process, eager."
    assert "Austen" in about["Data"]
    assert "2,072,912 parameters that ship" in about["Model"]
    assert found.one("section", id="settings").one("pre").text == (
        """python train.py objective=vicreg "task_name=it's <b>mine</b>\""""
    )
    account = terms(found.one("section", id="account"))
    assert account["FLOPs in all"] == f"{1500 * 819200:.3g}"
    assert account["peak memory, MiB"] == "3"
    assert account["training time"] == "100.0 s"
    assert account["bits per byte, ema weights"] == "1.6000"
    assert "bits per byte, swa weights" not in account
    latents = found.one("section", id="latents")
    assert latents.all("p")[0].text == "explains 30 % of the variance"
    assert ["R²", "0.3"] in latents.tables()["Diagnostics of the objective"]
    assert found.one("section", id="sample").one("pre").text == "Anne <b>said</b> no more"
    assert FULL["unfinished"][0] in found.one("section", id="verdict").text


def test_rows_without_bytes_are_told_in_nats_and_by_their_metric(tmp_path):
    val = {"bpb": None, "bytes": 0, "nll": 1.25, "solved": 0.75, "ema": {"nll": 1.5, "solved": 1.0}}
    val["floor"] = 1.0
    for metric, headline in (
        (None, "1.2500 nats per token"),
        ("val/solved", "share of rows solved 0.7500"),
    ):
        folder = write_run(
            tmp_path / str(metric), 1.7, summary={"val": val}, config={"metric": metric}
        )
        lines = "".join(f"{step},{3 - step / 30},{step / 40}\n" for step in (9, 19, 29))
        (folder / "metrics.csv").write_text(f"step,val/nll,val/solved\n{lines}")
        found = page(folder)
        assert found.one("h1").text == f"vicreg, seed 1: {headline}"
        account = terms(found.one("section", id="account"))
        assert account["nats above the law's own score"] == "0.2500"
        assert (account["nats per token"], account["share of rows solved"]) == ("1.2500", "0.7500")
        assert "bits per byte" not in account
        ema = {None: ("nats per token", "1.5000"), "val/solved": ("share of rows solved", "1.0000")}
        says, value = ema[metric]
        assert account[f"{says}, ema weights"] == value
        drawn = [figure.one("figcaption").text for figure in found.all("figure")]
        assert {"nats per token", "share of rows solved"} <= set(drawn)


def test_it_draws_what_was_measured(folder):
    figures = page(folder).one("section", id="curves").all("figure")
    titles = [figure.one("figcaption").text for figure in figures]
    assert titles[0] == "bits per byte"
    assert "R² of predictions (0 is the mean target)" in titles
    assert [item.text.split()[0] for item in figures[0].all("li")] == ["training", "validation"]
    assert figures[0].one("p", class_="under").text == "optimizer steps"
    assert len(figures[0].all("polyline")) == 2
    assert (
        "validation: 1.7 at step 400" in figures[0].one("div", role="img").attributes["aria-label"]
    )


def test_links_lead_to_files_that_exist(folder):
    links = {a.attributes["href"] for a in page(folder, "text").all("a")}
    assert {"checkpoints/last.ckpt", "config.json", "metrics.csv", SAMPLE_FILE} <= links
    assert all((folder / link).is_file() for link in links)


def test_it_needs_nothing_from_elsewhere(folder):
    page(folder, "<script>alert(1)</script>")
    text = (folder / PAGE_FILE).read_text()
    assert "<script" not in text
    assert not re.search(r"(?:src|href)=[\"']?(?:\w+:|//)|@import|url\((?!#)", text)


def test_a_run_without_records_of_hydra_or_metrics(tmp_path):
    folder = write_run(tmp_path / "bare", 1.7, weight=0.0)
    (folder / "metrics.csv").unlink()
    found = page(folder)
    assert "started from Python" in found.one("section", id="settings").text
    for section in ("curves", "latents", "sample"):
        assert not found.all("section", id=section)


def test_a_run_that_is_stopped_later_keeps_no_page_of_its_earlier_end(folder):
    keep_page(folder, "text", (), finished=True)
    assert (folder / SAMPLE_FILE).read_text() == "text\n"
    keep_page(folder, "", (), finished=False)
    assert not (folder / PAGE_FILE).exists()
    assert not (folder / SAMPLE_FILE).exists()


def test_a_page_that_cannot_be_written_does_not_fail_the_run(small, tmp_path, monkeypatch, capsys):
    from jepa_lm.commands import train as command

    def broken(*_, **__):
        raise ValueError("torn")

    monkeypatch.setattr(command, "keep_page", broken)
    assert command.train(small("trainer.max_steps=1", "data.tokenizer.vocab_size=400")) is not None
    assert "warning: run.html cannot be written (ValueError: torn)" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    "series",
    [
        {"a": [(1, 2.0)]},
        {"a": [(5, 0.0), (6, 0.0)]},
        {"a": [(1, -1e12), (9, 1e12)], "b": []},
        {"a": [(i, 1e-9 * i) for i in range(5000)], "b": [(3, 7e-6)]},
        {"<b>": [(1, 1.0), (2, 2.0)], "c": [(1, 1.0), (2, 2.0)], "d": [(1, 1.0), (2, 2.0)]},
    ],
)
def test_any_values_can_be_drawn(series):
    made = panel("says <what>", series)
    names = [name for name, points in series.items() if points]
    assert [style.name for style, _ in made.key] == names
    for name, line in zip(names, made.drawn.lines, strict=True):
        numbers = [int(n) for pair in made.drawn.path(line.points).split() for n in pair.split(",")]
        assert 2 <= len(numbers) <= 400
        assert all(abs(n) < 1e6 for n in numbers)
        assert 0 <= numbers[-1] <= 1000
        assert line.points[-1] == series[name][-1]
