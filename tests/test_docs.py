"""README, docs/ and CONTRIBUTING: commands compose, zsh takes each line as it is, links and the site hold."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import open_dict

from docs.site_hooks import DOCS, from_root, in_site, links
from jepa_lm.training.estimate import table
from jepa_lm.utils.command_words import check_words
from jepa_lm.utils.config import check, resolve
from jepa_lm.utils.paths import CONF
from tests.conftest import REPO

PAGES = [
    REPO / "README.md",
    REPO / "CONTRIBUTING.md",
    REPO / "CHANGELOG.md",
    *sorted((REPO / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
COMMANDS = ("train", "eval", "export")


def name(path: Path) -> str:
    return str(path.relative_to(REPO))


def shell_lines(text: str) -> Iterator[str]:
    """Yield the lines of shell blocks, continued ones as one."""
    for language, block in FENCE.findall(text):
        if language in ("bash", "sh", "") and not block.startswith("ok "):
            yield from filter(str.strip, block.replace("\\\n", " ").splitlines())


def command_of(line: str) -> list[str]:
    """Return the words of a line without its comment."""
    return shlex.split(line, comments=True)


DOCUMENTED = {
    line: path.name
    for path in reversed(PAGES)
    for line in shell_lines(path.read_text(encoding="utf-8"))
    if command_of(line)
}
"""The page of each line; README.md for those that it shares with others."""
RUNS = [
    line
    for line in DOCUMENTED
    if "$(" not in line and re.search(r"\b(train|eval|export)\.py", " ".join(command_of(line)))
]
OTHERS = sorted(
    line for line in DOCUMENTED.keys() - set(RUNS) if re.search(r"^make | -m |-e '", line)
)


def first_of_a_sweep(words: list[str]) -> list[str]:
    """Return overrides with the first value of each that is swept; without those that draw their values."""
    found = []
    for override in OverridesParser.create().parse_overrides(words):
        if not override.is_sweep_override():
            found.append(override.input_line)
        elif override.is_discrete_sweep():
            value = next(iter(override.sweep_string_iterator()))
            found.append(f"{override.key_or_group}={value}")
    return found


def compose(command: str, words: list[str]) -> None:
    """Compose what a command line asks for, as its command would.

    Raises:
        HydraException, UserError: no such key or choice, or a value out of its range.
    """
    check_words(words)
    swept = any(word.startswith(("sweep=", "study=")) for word in words)
    loader = ConfigLoaderImpl(config_search_path=create_config_search_path(str(CONF)))
    cfg = loader.load_configuration(
        command,
        overrides=["paths.run_dir=unused", *(words if swept else first_of_a_sweep(words))],
        run_mode=RunMode.MULTIRUN if swept else RunMode.RUN,
    )
    if command == "train":
        with open_dict(cfg):
            del cfg["hydra"]
        check(resolve(cfg), imports=False)


def words_after(line: str) -> tuple[str, list[str]]:
    """Return the command of a line and its overrides."""
    words = command_of(line)
    at = next(
        i for i, word in enumerate(words) if word.endswith(tuple(f"{c}.py" for c in COMMANDS))
    )
    flags = {"-m", "--help", "--cfg", "job", "--resolve"}
    return words[at].removesuffix(".py"), [word for word in words[at + 1 :] if word not in flags]


@pytest.mark.parametrize("line", [line for line in RUNS if DOCUMENTED[line] == "README.md"])
def test_a_run_in_the_readme_composes(line):
    compose(*words_after(line))


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(set(DOCUMENTED.values()) - {"README.md"}))
def test_runs_on_a_page_compose(page):
    for line in (line for line in RUNS if DOCUMENTED[line] == page):
        compose(*words_after(line))


@pytest.mark.parametrize(
    "line",
    [
        "python train.py experiment=pr1243_jepardi trainer=ddp",
        "torchrun --nproc-per-node 8 train.py trainer.max_timee=600",
        "python train.py -m jepa.weight=-1,0 objective=patch",
        "python export.py ckpt_path=last export.kode=inference",
        "python eval.py artifact_path=last eval=slyding",
        "python train.py study=ablation objective=lewm jepa.wight=1",
    ],
)
def test_a_wrong_one_would_be_found(line):
    with pytest.raises(Exception, match=r"pr1243_jepardi|timee|jepa\.weight=-1|kode|slyding|wight"):
        compose(*words_after(line))


@pytest.mark.parametrize("line", OTHERS)
def test_what_another_documented_command_names_exists(line):
    words = command_of(line)
    if words[0] == "make":
        assert {w for w in words[1:] if "=" not in w} <= set(
            re.findall(r"^(\S+):", (REPO / "Makefile").read_text(), re.M)
        )
    elif words[0].startswith("jepa-"):
        assert words[0] in PROJECT["scripts"]
    elif "-m" in words:
        assert importlib.util.find_spec(words[words.index("-m") + 1]) is not None
    else:  # pip install -e '.[extra]'
        (extra,) = re.findall(r"\.\[(\w+)\]", line)
        assert extra in PROJECT["optional-dependencies"]


def unquoted(line: str) -> list[str]:
    """Return the words of a line, or of code in a sentence, that zsh would expand or refuse."""
    bare = QUOTED.sub("Q", re.sub(r"(?<!\S)#.*", "", line))
    return [w for w in bare.split() if re.search(r"[*?\[\]()]|\{\S*(,|\.\.)\S*\}|^[~=]\S|<\w+>", w)]


STARTS = re.compile(
    r"(python|pip|make|docker|torchrun|jepa-\w+|[\w.]+\.(py|sbatch)) |--?[a-z]|['~+]*[\w./]+=[^=]|~\w"
)
"""How code in a sentence begins that a reader pastes: with a command, a flag or an override."""


def pasted(text: str) -> Iterator[str]:
    """Yield what a reader pastes: shell lines, and code in sentences that begins as `STARTS` says."""
    yield from shell_lines(text)
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        code = " ".join(code.split())
        if STARTS.match(code):
            yield code


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_zsh_takes_every_line_as_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert {line: found for line in pasted(text) if (found := unquoted(line))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "trust=[a]",
        "~model/softcap",
        "jepa.*=1",
        "a={b,c}",
        "x=range(1,6)",
        "model=<name>",
        "=a",
        "pip install .[x]",
    ],
)
def test_what_zsh_refuses_would_be_found(line):
    assert unquoted(line)
    assert not unquoted(f"python '{line}' # [{line}]")
    assert [unquoted(x) for x in pasted(f"```bash\n{line}\n```")] != [[]]


@pytest.mark.parametrize(
    "start", ["", "--config-dir mine ", "-m ", "jepa-eval ", "python train.py "]
)
def test_code_in_a_sentence_is_read(start):
    (code,) = pasted(f"They need `{start}trust=[a]`, and `a table`.")
    assert unquoted(code) == ["trust=[a]"]


def anchors(text: str) -> set[str]:
    """Return the names of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_link_leads_somewhere(path):
    for file, anchor in links(path.read_text(encoding="utf-8")):
        there = (path.parent / file).resolve() if file else path
        assert there.is_file(), file
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), (file, anchor)


def test_the_site_has_every_page_and_what_pages_link_to():
    """What the strict build of `make docs` refuses, without mkdocs."""
    site = yaml.safe_load((REPO / "mkdocs.yml").read_text(encoding="utf-8"))
    assert all((REPO / hook).is_file() for hook in site["hooks"])
    files = {p.relative_to(DOCS).as_posix(): p for p in DOCS.rglob("*") if p.suffix != ".py"}
    files |= from_root()
    pages = {
        n: in_site(p.read_text(encoding="utf-8")) for n, p in files.items() if p.suffix == ".md"
    }
    assert sorted(re.findall(r"[\w.]+\.md", repr(site["nav"]))) == sorted(pages)
    assert {path.resolve() for path in PAGES} == {files[page] for page in pages}
    for page, text in pages.items():
        for file, anchor in links(text):
            assert (file or page) in files, (page, file)
            assert not anchor or anchor in anchors(pages[file or page]), (page, file, anchor)


def test_every_published_preset_can_be_reproduced():
    """Each has a block of three commands: train, export, evaluate."""
    text = (REPO / "docs" / "reproduce.md").read_text(encoding="utf-8")
    blocks = [
        [words_after(x) for x in b.splitlines()] for _, b in FENCE.findall(text) if "\\" not in b
    ]
    trained = {
        word.removeprefix("experiment=")
        for block in blocks
        if [command for command, _ in block] == ["train", "export", "eval"]
        for word in block[0][1]
        if word.startswith("experiment=")
    }
    assert trained == {path.stem for path in (CONF / "experiment").glob("pr*.yaml")}


def test_every_published_preset_has_a_command_for_one_gpu():
    runs = [words_after(line)[1] for line in RUNS if DOCUMENTED[line] == "reproduce.md"]
    found = {word for words in runs if "trainer=gpu" in words for word in words}
    presets = {f"experiment={path.stem}" for path in (CONF / "experiment").glob("pr*.yaml")}
    assert presets - found == {"experiment=pr1581_span_vicreg_8gpu"}


def test_estimated_steps_are_those_of_the_trace():
    text = (REPO / "docs" / "reproduce.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.* at most ([\d,]+), estimated", text, re.MULTILINE)
    assert len(rows) == 3
    for preset, steps in rows:
        least = table()[preset.removesuffix("_8gpu")]["h100_ms"]
        assert int(steps.replace(",", "")) == round(600_000 / least, -2)
