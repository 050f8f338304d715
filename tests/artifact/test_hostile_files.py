"""Files read as data: nothing in them is run, no reference is resolved, no claimed size is allocated."""

from __future__ import annotations

import importlib
import os

import pytest
import torch

from jepa_lm import run
from jepa_lm.artifact.__main__ import main as look
from jepa_lm.commands.train import train
from jepa_lm.utils.config import resolve
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.schema import Limits
from jepa_lm.utils.trusted import Trust, check_part, plain
from tests.artifact.hostile import (
    PLACES,
    ROUTES,
    bombs,
    bounded,
    clear,
    forms,
)


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_refuses_a_reference_and_a_foreign_call(go, canary, route):
    kinds = forms(canary)
    place = ("model", "bigram")
    for name in ("a reference that calls", "one in a tuple in a list"):
        if "artifact" in route and "tuple" in name:
            continue  # JSON has none
        assert clear(go(route, place, kinds[name]), canary), (route, name)


@pytest.mark.parametrize("form", forms(None))  # type: ignore[arg-type]
def test_every_form_is_refused_in_one_line_before_anything_is_built(go, canary, form):
    value = forms(canary)[form]
    assert clear(go("eval checkpoint", ("data", "corpus"), value), canary)
    if form != "a long number":  # which JSON cannot hold either
        assert clear(go("look at artifact", ("model", "bigram"), value), canary)


@pytest.mark.parametrize("part", PLACES, ids=lambda place: place[0])
def test_every_part_that_is_built_out_of_a_checkpoint_is_looked_at(go, canary, part):
    told = go("export checkpoint", part, forms(canary)["a foreign function"])
    assert clear(told, canary)
    assert "numpy.savetxt" in told


@pytest.mark.slow
def test_archives_that_take_more_than_they_hold_are_refused(go, trained, tmp_path, canary):
    file = tmp_path / "bomb.ckpt"
    for name, make in bombs(trained.checkpoint).items():
        file.write_bytes(make())
        with bounded():
            assert clear(go.refusal("eval checkpoint", file), canary), name
    assert not canary.exists()


def test_what_looks_like_a_reference_is_plain_text_elsewhere(small, compose, tmp_path):
    """In a prompt, a tag or a name it has no meaning to this program and is shown as written."""
    words = ("tags=['\\${oc.env:HOME}']", "sampling.prompt='\\${x} {0} %s'", "trainer.max_steps=1")
    train(small(*words, "sample=true", "sampling.tokens=1"))
    run.evaluate(compose("eval", f"ckpt_path={tmp_path / 'run'}", "eval.baselines=false"))
    config = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)[
        "hyper_parameters"
    ]["config"]
    assert config["tags"] == ["${oc.env:HOME}"]
    assert config["sampling"]["prompt"] == "${x} {0} %s"


MINE = """
from subprocess import Popen

from jepa_lm.model.heads import TanhSoftcap

class Mine(TanhSoftcap):
    pass
"""


@pytest.mark.slow
def test_a_module_of_ones_own_is_built_when_the_user_names_it_and_only_then(
    small, compose, tmp_path, monkeypatch
):
    """In training, evaluation, resuming, and export with its fresh process."""
    (tmp_path / "my_parts.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    importlib.invalidate_caches()
    own = ("model/softcap=tanh", "model.softcap._target_=my_parts.Mine")
    train(small(*own, "trainer.max_steps=2"))
    checkpoint = f"ckpt_path={tmp_path / 'run'}"
    quick = ("export.codecs=[zlib]", "export.max_tokens=1000", f"paths.run_dir={tmp_path / 'x'}")
    with pytest.raises(UserError, match=r"my_parts\.Mine.*trust=\[its_name\]"):
        run.evaluate(compose("eval", checkpoint))
    with pytest.raises(UserError, match=r"trust=\[nobody\]: cannot be imported"):
        run.evaluate(compose("eval", checkpoint, "trust=[nobody]"))
    run.export(compose("export", checkpoint, *quick, "trust=[my_parts]"))
    with pytest.raises(UserError, match=r"my_parts\.Mine"):
        run.evaluate(compose("eval", f"artifact_path={tmp_path / 'x'}"))
    assert look([str(tmp_path / "x")]) == 2
    assert look([str(tmp_path / "x"), "trust=[my_parts]"]) == 0
    train(small(*own, "trainer.max_steps=3", "ckpt_path=auto"))
    # Modules that a trusted module imports are not trusted with it.
    with pytest.raises(UserError, match=r"my_parts\.Popen"):
        check_part("model", {"_target_": "my_parts.Popen"}, "a file", Trust(("my_parts",)))


def test_limits_are_the_users_to_set(compose, trained):
    """No file can set them: a config is read with the limits of the command line alone."""
    for limit, words in (
        ("bytes=1000", "limits.bytes=1000"),
        ("tensors=3", "limits.tensors=3"),
        ("tensor_values=100", "limits.tensor_values=100"),
        ("blocks=0", "limits.blocks=0: expected a whole number of at least 1"),
    ):
        with pytest.raises(UserError, match=words):
            run.evaluate(compose("eval", f"ckpt_path={trained.checkpoint}", f"limits.{limit}"))
    assert Trust.of(resolve(compose("eval"))).limits == Limits()


def test_a_plain_copy_is_the_same_and_shares_nothing():
    value = {"a": [1, 2.5, None, True, "x"], "b": {"c": (1, 2)}}
    copied = plain(value, "here")
    assert copied == {"a": [1, 2.5, None, True, "x"], "b": {"c": [1, 2]}}
    copied["a"].append(3)
    assert len(value["a"]) == 5


class Text(str):
    """A subclass of str, which could run anything, is not plain text."""


@pytest.mark.parametrize("value", [Text("x"), {1: 2}, {"a": {Text("k"): 1}}, b"x", {1, 2}, 1 << 63])
def test_other_types_are_refused(value):
    with pytest.raises(UserError, match="here: its config holds"):
        plain({"top": value}, "here")
