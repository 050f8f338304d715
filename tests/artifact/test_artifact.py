"""The exported file: strict in a fresh process (traps 20, 21), honest in size (23), no code (24)."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys

import brotli
import pytest
import safetensors.torch
import torch
from hydra.utils import instantiate

from jepa_lm.artifact import container
from jepa_lm.artifact.compression import COMPRESSORS, compress_best, decompress
from jepa_lm.artifact.container import HEADER, MAGIC, load_artifact
from jepa_lm.artifact.size import code_bytes
from jepa_lm.checkpoint import read_checkpoint
from jepa_lm.errors import OverCapError, UserError
from jepa_lm.run import evaluate, export


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The artifact of the shared run, and its account."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from jepa_lm.cli import CONF

    folder = tmp_path_factory.mktemp("export")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        export(hydra.compose("export", [f"ckpt_path={trained.folder}", f"paths.run_dir={folder}"]))
    account = json.loads((folder / "export.json").read_text())
    return folder, account


def artifact_file(folder):
    (path,) = folder.glob("artifact.*")
    return path


def test_keys_are_those_of_a_fresh_inference_model(exported, trained):
    folder, account = exported
    loaded = load_artifact(artifact_file(folder))
    fresh = instantiate(read_checkpoint(trained.checkpoint)["hyper_parameters"]["config"]["model"])
    names = {name for name, _ in fresh.named_parameters()}
    assert {row["name"] for row in account["tensors"]} == names
    assert set(loaded.meta["formats"]) == names
    assert {n for n, _ in loaded.model.named_parameters()} == names


def test_a_fresh_process_scores_the_artifact_like_the_checkpoint(exported, trained, tmp_path):
    """Nothing of a live model can help: another process, other objects, strict loading."""
    folder, _ = exported
    done = subprocess.run(
        [
            sys.executable,
            "eval.py",
            f"artifact_path={folder}",
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
    assert result["bpb"] != trained.bpb  # it is the quantized model that was scored


def test_float32_export_scores_exactly(trained, compose, tmp_path):
    run_dir = tmp_path / "run"
    export(compose("export", f"ckpt_path={trained.folder}", "quantization=none"))
    got = evaluate(compose("eval", f"artifact_path={run_dir}", "eval.baselines=false"))
    assert got == pytest.approx(trained.bpb, abs=1e-9)


def test_account_is_of_the_files_on_disk(exported):
    folder, account = exported
    path = artifact_file(folder)
    assert account["bytes"] == path.stat().st_size
    assert account["code_bytes"] == code_bytes() > 50_000
    assert account["total"] == account["bytes"] + account["code_bytes"]
    assert account["headroom"] == 16_000_000 - account["total"]
    assert account["compressors"][account["codec"]] == account["bytes"]
    assert account["bytes"] == min(account["compressors"].values())
    formats = {row["name"]: row["format"] for row in account["tensors"]}
    assert formats["embedding.table.weight"] == "int8"
    assert formats["backbone.blocks.0.attention.query.weight"] == "int8"
    assert formats["backbone.skip_weights"] == "float16"


def test_over_the_cap_exits_three_and_keeps_the_files(trained, compose, tmp_path):
    with pytest.raises(OverCapError, match=r"cap_bytes=100000: artifact \d+ \+ code \d+") as caught:
        export(compose("export", f"ckpt_path={trained.folder}", "cap_bytes=100000"))
    assert caught.value.exit_code == 3
    assert json.loads((tmp_path / "run" / "export.json").read_text())["fits"] is False
    assert artifact_file(tmp_path / "run").is_file()


def test_a_missing_tensor_does_not_load(exported, tmp_path):
    """The planted bug of trap 21: a tensor lost on the way must not go unnoticed."""
    path = artifact_file(exported[0])
    tensors, meta = unpack(path)
    name = "backbone.blocks.0.mlp.up.weight"
    for lost in (name, f"{name}::scale"):
        fewer = {k: v for k, v in tensors.items() if k != lost}
        with pytest.raises(UserError, match="damaged artifact"):
            load_artifact(pack(tmp_path, fewer, meta))
    meta_without = {**meta, "formats": {k: v for k, v in meta["formats"].items() if k != name}}
    fewer = {k: v for k, v in tensors.items() if not k.startswith(name)}
    with pytest.raises(UserError, match="its tensors are not those of its model"):
        load_artifact(pack(tmp_path, fewer, meta_without))
    more = tensors | {"predictor.weight": torch.zeros(2)}
    with pytest.raises(UserError, match=r"holds predictor\.weight, which no format describes"):
        load_artifact(pack(tmp_path, more, meta))
    more_meta = {
        **meta,
        "formats": {**meta["formats"], "predictor.weight": {"kind": "cast", "dtype": "float16"}},
    }
    with pytest.raises(UserError, match="its tensors are not those of its model"):
        load_artifact(pack(tmp_path, more, more_meta))


def unpack(path):
    raw = container._read(path)
    return safetensors.torch.load(raw), container._metadata(raw, path)


def pack(tmp_path, tensors, meta, codec="zlib"):
    raw = safetensors.torch.save(dict(tensors), {"jepa_lm": json.dumps(meta)})
    return write(tmp_path, COMPRESSORS[codec](raw), len(raw), codec)


def write(tmp_path, packed, size, codec="zlib"):
    path = tmp_path / "artifact.test"
    path.write_bytes(HEADER.pack(MAGIC, codec.encode(), size) + packed)
    return path


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
    tensors, meta = unpack(artifact_file(exported[0]))
    meta["model"]["softcap"] = {"_target_": target, "command": f"touch {tmp_path}/owned"}
    with pytest.raises(UserError, match="asks to call"):
        load_artifact(pack(tmp_path, tensors, meta))
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
    """By its source: nothing in the package that reads artifacts unpickles."""
    from pathlib import Path

    import jepa_lm.artifact

    for path in Path(jepa_lm.artifact.__file__).parent.glob("*.py"):
        assert not re.search(
            r"import pickle|(?<!safetensors\.)torch\.load|np\.load|joblib", path.read_text()
        ), path


@pytest.mark.parametrize("codec", COMPRESSORS)
def test_codecs_round_trip_and_refuse_bombs(codec):
    torch.manual_seed(0)
    raw = torch.randint(0, 9, (3_000_000,), dtype=torch.uint8).numpy().tobytes()
    packed = COMPRESSORS[codec](raw)
    assert decompress(codec, packed, len(raw)) == raw
    with pytest.raises(UserError, match="more than the 1000 bytes"):
        decompress(codec, packed, 1000)
    with pytest.raises(UserError, match=r"truncated\?|damaged"):
        decompress(codec, packed[: len(packed) // 2], len(raw))
    with pytest.raises(UserError, match=r"damaged|promises"):
        decompress(codec, b"\x55" * 64, 64)


def test_a_bomb_is_stopped_at_the_promised_size():
    """256 MB of zeros in a few hundred bytes: never held, the header promises 1 kB."""
    import tracemalloc

    bomb = brotli.compress(bytes(1 << 28), quality=1)
    tracemalloc.start()
    with pytest.raises(UserError, match="more than the 1024 bytes"):
        decompress("brotli", bomb, 1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_the_smallest_codec_wins():
    raw = b"abc" * 10_000
    best, packed, sizes = compress_best(raw)
    assert sizes.keys() == COMPRESSORS.keys()
    assert len(packed) == sizes[best] == min(sizes.values())


def test_malformed_files_are_one_clear_line(exported, tmp_path):
    whole = artifact_file(exported[0]).read_bytes()
    cases = {
        "empty": b"",
        "short": whole[:10],
        "truncated": whole[:-100],
        "unknown codec": HEADER.pack(MAGIC, b"rar", 100) + whole[HEADER.size :],
        "huge promise": HEADER.pack(MAGIC, b"zlib", 1 << 50) + whole[HEADER.size :],
        "text": b"hello " * 100,
    }
    for name, data in cases.items():
        path = tmp_path / "artifact.bad"
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            load_artifact(path)
        assert "\n" not in str(caught.value), name
    with pytest.raises(UserError, match="no readable header"):
        load_artifact(write(tmp_path, COMPRESSORS["zlib"](b"x" * 50), 50))
    tensors, meta = unpack(artifact_file(exported[0]))
    with pytest.raises(UserError, match="format version 99"):
        load_artifact(pack(tmp_path, tensors, {**meta, "format_version": 99}))
    with pytest.raises(UserError, match="no such file"):
        load_artifact(tmp_path / "nothing")


def test_the_command_line_says_what_is_inside(exported, capsys, tmp_path):
    from jepa_lm.artifact.__main__ import main

    folder, account = exported
    assert main([str(artifact_file(folder))]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{account['bytes']:,}" in shown
    assert "stored as int 8" in shown
    assert "stored as cast float16" in shown
    (tmp_path / "broken").write_bytes(b"nothing of the kind")
    assert main([str(tmp_path / "broken")]) == 2
    assert capsys.readouterr().err.startswith(f"error: artifact_path={tmp_path / 'broken'}: not an")
    assert main([]) == 2
