"""Loading the exported file: strictly, in a fresh process, without running anything from the file."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hydra.utils import instantiate

from jepa_lm.artifact.container import COUNT, MAGIC, MAX_BYTES, STREAM
from jepa_lm.artifact.loaded_model import load_model
from jepa_lm.artifact.loading import MAX_HEADER, load_artifact, weights_hash
from jepa_lm.model.checkpoint import read_checkpoint
from jepa_lm.run import evaluate, export
from jepa_lm.utils.errors import UserError
from tests.artifact.forging import forge, pack, unpack


def test_keys_are_those_of_a_fresh_inference_model(exported, trained):
    account = exported.account
    loaded = load_artifact(exported.file)
    fresh = instantiate(read_checkpoint(trained.checkpoint)["hyper_parameters"]["config"]["model"])
    names = {name for name, _ in fresh.named_parameters()}
    assert {row["name"] for row in account["tensors"]} == names
    assert set(loaded.meta["formats"]) == names
    assert {n for n, _ in loaded.model.named_parameters()} == names


@pytest.mark.slow
def test_a_fresh_process_scores_the_artifact_like_the_checkpoint(exported, trained, tmp_path):
    """Nothing of a live model can help: another process, new objects, strict loading."""
    done = subprocess.run(
        [
            sys.executable,
            "eval.py",
            f"artifact_path={exported.folder}",
            "eval.baselines=false",
            f"hydra.run.dir={tmp_path}/eval",
        ],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert result["bpb"] == pytest.approx(trained.bpb, abs=0.01)
    assert result["bpb"] != trained.bpb  # the quantized model is what was scored


@pytest.mark.usefixtures("answers_here")
def test_float32_export_scores_exactly(trained, compose, tmp_path):
    run_dir = tmp_path / "run"
    quick = ("quantization=none", "export.codecs=[zlib]")
    export(compose("export", f"ckpt_path={trained.folder}", *quick))
    got = evaluate(compose("eval", f"artifact_path={run_dir}", "eval.baselines=false"))
    assert got == pytest.approx(trained.bpb, abs=1e-9)


def test_a_missing_tensor_does_not_load(exported, tmp_path):
    """Planted bug: a tensor lost on the way must not go unnoticed."""
    path = exported.file
    tensors, meta = unpack(path)
    name = "backbone.blocks.0.mlp.up.weight"
    for lost in (name, f"{name}::scale"):
        fewer = {k: v for k, v in tensors.items() if k != lost}
        with pytest.raises(UserError, match="damaged artifact"):
            load_artifact(pack(tmp_path, fewer, meta))
    meta_without = {**meta, "formats": {k: v for k, v in meta["formats"].items() if k != name}}
    fewer = {k: v for k, v in tensors.items() if not k.startswith(name)}
    with pytest.raises(UserError, match="asks for more than the 35 tensors"):
        load_artifact(pack(tmp_path, fewer, meta_without))
    more = tensors | {"predictor.weight": torch.zeros(2)}
    with pytest.raises(UserError, match=r"holds predictor\.weight, which has no format"):
        load_artifact(pack(tmp_path, more, meta))
    more_meta = {
        **meta,
        "formats": {**meta["formats"], "predictor.weight": {"kind": "cast", "dtype": "float16"}},
    }
    with pytest.raises(UserError, match="its tensors do not match its model"):
        load_artifact(pack(tmp_path, more, more_meta))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "jepa_lm.model.layers.torch.load",
        "jepa_lm.model.layers.torch.nn.Linear",
        "jepa_lm.cli.launch",
        "jepa_lm.model.layers.rms_norm",
        "jepa_lm.modelling.Thing",
        7,
    ],
)
def test_a_config_inside_an_artifact_can_call_nothing_else(exported, tmp_path, target):
    tensors, meta = unpack(exported.file)
    meta["model"]["softcap"] = {"_target_": target, "command": f"touch {tmp_path}/owned"}
    with pytest.raises(UserError, match="asks to call"):
        load_artifact(pack(tmp_path, tensors, meta))
    assert not (tmp_path / "owned").exists()


def test_the_data_of_an_artifact_can_call_nothing_else(exported, tmp_path):
    """Evaluation builds the data that the file names, and would call whatever it names."""
    tensors, meta = unpack(exported.file)
    for target in ("os.system", "jepa_lm.model.language_model.LanguageModel"):
        meta["data"]["tokenizer"] = {"_target_": target, "command": f"touch {tmp_path}/owned"}
        with pytest.raises(UserError, match="asks to call"):
            load_model(None, str(pack(tmp_path, tensors, meta)))
    assert not (tmp_path / "owned").exists()


def test_a_pickle_is_not_an_artifact_and_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    path = tmp_path / "artifact.xz"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="not an artifact"):
        load_artifact(path)
    checkpoint = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Evil()}, checkpoint)
    with pytest.raises(UserError, match="damaged, or not a checkpoint"):
        read_checkpoint(checkpoint)
    assert not (tmp_path / "owned").exists()


def test_the_artifact_path_imports_no_pickle():
    """Read from its source: no module that reads artifacts unpickles."""
    from pathlib import Path

    import jepa_lm.artifact

    for path in Path(jepa_lm.artifact.__file__).parent.glob("*.py"):
        assert not re.search(
            r"import pickle|(?<!safetensors\.)torch\.load|np\.load|joblib", path.read_text()
        ), path


def test_malformed_files_are_one_clear_line(exported, tmp_path):
    whole = exported.file.read_bytes()
    path = tmp_path / "artifact.bad"
    cases = {
        "not an artifact": [b"", b"hello " * 100, b"JEPALM"],
        "damaged or truncated": [whole[:10], whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1])],
    }
    for words, files in cases.items():
        for data in files:
            path.write_bytes(data)
            with pytest.raises(UserError, match=words) as caught:
                load_artifact(path)
            assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no readable header"):
        load_artifact(forge(tmp_path, bytes(50)))
    with pytest.raises(UserError, match="no such file"):
        load_artifact(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"", "truncated"),
        (COUNT.pack(0), "0 streams"),
        (COUNT.pack(1 << 30), "1073741824 streams"),
        (COUNT.pack(2) + STREAM.pack(b"zlib", 5, 5), "truncated"),
        (COUNT.pack(1) + STREAM.pack(b"rar", 5, 0), "unknown compression 'rar'"),
        (COUNT.pack(1) + STREAM.pack(b"zlib", MAX_BYTES + 1, 0), "more than 201326592"),
        (
            COUNT.pack(1) + STREAM.pack(b"zlib", 5, 5),
            "holds 0 bytes of streams, but its table says 5",
        ),
    ],
)
def test_a_forged_table_of_streams_is_refused(tmp_path, table, words):
    path = tmp_path / "artifact.bad"
    path.write_bytes(MAGIC + hashlib.sha256(table).digest() + table)
    with pytest.raises(UserError, match=words):
        load_artifact(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"temperature": None}, "no usable 'temperature'"),
        ({"temperature": -1.0}, "no usable 'eval.stride' or 'temperature'"),
        ({"eval": {}}, "no usable 'eval.stride' or 'temperature'"),
        ({"seed": True}, "no usable 'seed'"),
        ({"weights_sha256": "0" * 64}, "its weights are not the exported ones"),
        ({"planes": {"nobody": "float16"}}, "damaged artifact"),
        ({"planes": {"backbone.blocks.0.mlp.up.weight": "float16"}}, "damaged artifact"),
    ],
)
def test_a_forged_header_is_refused(exported, tmp_path, changes, words):
    tensors, meta = unpack(exported.file)
    with pytest.raises(UserError, match=words):
        load_artifact(pack(tmp_path, tensors, {**meta, **changes}))


def test_weights_that_were_changed_after_the_export_are_refused(exported, tmp_path):
    tensors, meta = unpack(exported.file)
    name = "backbone.blocks.0.mlp.up.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] ^= 1
    with pytest.raises(UserError, match="its weights are not the exported ones"):
        load_artifact(pack(tmp_path, tensors, meta))


def test_a_config_that_asks_for_more_than_its_tensors_builds_nothing(exported, tmp_path):
    """Neither a million layers nor a table of terabytes may take time or memory."""
    tensors, meta = unpack(exported.file)
    for part, key, value, words in (
        ("backbone", "layers", 10**9, "more than the 36 tensors that the file names"),
        ("embedding", "vocab_size", 1 << 40, r"a tensor of 70368744177664 values; limits\."),
        ("bigram", "buckets", 1 << 24, "more values than limits.bytes or the format allow"),
    ):
        changed = copy.deepcopy(meta)
        changed["model"][part][key] = value
        with pytest.raises(UserError, match=words):
            load_artifact(pack(tmp_path, tensors, changed))


def test_a_header_of_nested_lists_is_refused_unread(exported, tmp_path):
    raw = safetensors.torch.save({"a": torch.zeros(1)}, {"jepa_lm": "[" * (MAX_HEADER + 1)})
    with pytest.raises(UserError, match="a header of"):
        load_artifact(forge(tmp_path, raw))
    raw = safetensors.torch.save({"a": torch.zeros(1)}, {"jepa_lm": "[" * 100_000})
    with pytest.raises(UserError, match="no readable header"):
        load_artifact(forge(tmp_path, raw))


def test_a_tensor_in_two_streams_is_refused(exported, tmp_path):
    tensors, meta = unpack(exported.file)
    first = safetensors.torch.save(tensors, {"jepa_lm": json.dumps(meta)})
    name = next(iter(tensors))
    second = safetensors.torch.save({name: tensors[name]})
    with pytest.raises(UserError, match="twice"):
        load_artifact(forge(tmp_path, first, second))


def test_the_hash_is_of_names_and_values():
    one = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert weights_hash(one) == weights_hash(dict(reversed(one.items())))
    assert weights_hash(one) != weights_hash({"a": torch.zeros(2), "b": torch.ones(2)})
    assert weights_hash(one) != weights_hash({**one, "b": torch.tensor([0.0, 1e-9])})
