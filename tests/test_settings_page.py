"""The settings page is made of conf/ as it is now, and every key is explained there."""

from __future__ import annotations

import pytest
import yaml

from docs import settings_page
from docs.conf_reader import read
from docs.settings_page import PAGE, files, kind, meaning
from jepa_lm.utils.nested import flat
from jepa_lm.utils.paths import CONF


def unexplained(path) -> list[str]:
    """Return the keys of a file that nothing explains."""
    plain = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    plain.pop("defaults", None)
    keys = [key for key in flat(plain) if not f".{key}".endswith("._target_")]
    top = next(iter(read(path).entries), "")
    return [key for key in keys if not meaning(path, f"{top}.{key}".lstrip("."))]


def test_the_page_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert settings_page.page(text) == text, "run `make settings`"


def test_the_page_has_every_file():
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("\n### ") == len(list(CONF.rglob("*.yaml"))) == len(files())
    for key in ("jepa.context.tap", "optimizer.groups.matrices.ns_steps", "trainer.max_time"):
        assert f"\n| `{key}` | " in text


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(CONF)))
def test_every_key_is_explained(path):
    assert unexplained(path) == [], "add a short comment beside the key"


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """planted(YAML) -> a file of a folder conf/model that holds nothing else."""

    def write(text: str):
        for module in ("docs.conf_reader.CONF", "docs.settings_page.CONF"):
            monkeypatch.setattr(module, tmp_path)
        path = tmp_path / "model" / "mine.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        for function in (settings_page.comments, settings_page.meanings, read):
            function.cache_clear()
        return path

    yield write
    for function in (settings_page.comments, settings_page.meanings, read):
        function.cache_clear()


def test_a_key_without_a_word_would_be_found(planted):
    path = planted(
        "_target_: jepa_lm.model.heads.UntiedHead\nzero_init: false\nfoo: 1\nbar: {a: 1, b: 2}\n"
    )
    assert unexplained(path) == ["foo", "bar.a", "bar.b"]
    assert meaning(path, "model.zero_init").startswith("start at zero instead")
    assert kind(path, "model.zero_init") == "true or false"


def test_comments_are_those_of_their_keys(planted):
    path = planted(
        "# The file.\n#   python train.py\nfirst: 1\n# above\n# it\nsecond: '# 2'   # ignored?\n"
        'third: ["#a", b#c]  # beside #832\n                    # and below\nfourth:\n  # inner\n'
        "  fifth: 5\n  sixth: null\n"
    )
    assert read(path).about == ["The file.", "  python train.py"]
    assert {key: entry.says for key, entry in read(path).entries.items()} == {
        "model": "",
        "model.first": "",
        "model.second": "ignored?",
        "model.third": "beside #832 and below",
        "model.fourth": "",
        "model.fourth.fifth": "inner",
        "model.fourth.sixth": "",
    }
