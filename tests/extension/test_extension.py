"""An objective, a backbone, a number format, a corpus of one's own: one Python and one YAML file each.

The files lie outside the package, as a user's would: `--config-dir` finds the YAML, PYTHONPATH the modules.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from jepa_lm.artifact.loaded_model import load_data, load_model
from jepa_lm.data.tokenizers import ByteTokenizer
from jepa_lm.objective.step_context import StepContext
from jepa_lm.quantization.formats import unpack_parts
from jepa_lm.run import train
from jepa_lm.schedules.clock import ProgressClock
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.paths import CONF
from jepa_lm.utils.trusted import Trust
from tests.conftest import FAST_MUON, REPO, STARTUP
from tests.extension.gated_linear_attention import GatedLinearAttention
from tests.extension.info_nce import InfoNCE
from tests.extension.nf4 import LEVELS, NF4

HERE = Path(__file__).parent
SIZES = (
    "data.seq_len=32", "data.batch_tokens=256",
    "data.val_batch_tokens=512", "model.dim=64", "model.backbone.layers=3", "model.bigram.buckets=128",
    "trainer.max_steps=20", "trainer.precision=32-true", "trainer.log_every_n_steps=1", "sample=false",
    FAST_MUON,
)  # fmt: skip
TRUST = "trust=[gated_linear_attention,nf4]"


def run(script: str, *words: str, cwd: Path, code: int = 0) -> str:
    """Run a command as a user would, from elsewhere; return what it printed on stderr."""
    paths = os.pathsep.join(map(str, (HERE, REPO, STARTUP)))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPO / script), *words]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.mark.slow
def test_all_three_train_export_and_score(tmp_path, small_text):
    chosen = (
        "objective=info_nce",
        "model=gla",
        "quantization=nf4",
        "quantization.training.start=0.5",
        "jepa.diagnostics.every=10",
        "data=text",
        "data.tokenizer.vocab_size=400",
    )
    words = ("--config-dir", str(HERE / "conf"), *chosen, *SIZES, f"data.path={small_text}")
    run("train.py", *words, f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    trained = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert trained["trained_stored"]["first_step"] == 11
    assert trained["jepa"]["trunk_gradient_share"] > 0
    assert trained["val"]["quantized"]["nll"] != trained["val"]["nll"]

    export = (
        f"ckpt_path={tmp_path}/run",
        f"hydra.run.dir={tmp_path}/export",
        "export.max_tokens=2048",
    )
    refused = run("export.py", *export, cwd=tmp_path, code=2)
    assert "a module of your own: trust=[its_name]" in refused.splitlines()[-1]
    run("export.py", *export, TRUST, cwd=tmp_path)
    exported = json.loads((tmp_path / "export" / "export.json").read_text())
    assert "nf4" in {tensor["format"] for tensor in exported["tensors"]}

    score = (
        f"artifact_path={tmp_path}/export",
        f"hydra.run.dir={tmp_path}/eval",
        "eval.baselines=false",
    )
    run(
        "eval.py", *score, "trust=[gated_linear_attention]", cwd=tmp_path, code=2
    )  # the format, too
    run("eval.py", *score, TRUST, cwd=tmp_path)
    scored = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert scored["nll"] == pytest.approx(trained["val"]["quantized"]["nll"], rel=1e-3)


def test_shards_from_a_source_of_ones_own_train_and_score(tmp_path, small_text, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    source, folder = tmp_path / "arrays", tmp_path / "run"
    chosen = (
        "data=arrays",
        f"data.path={source}",
        f"data.cache_dir={tmp_path}/cache",
        "trainer.max_steps=2",
    )
    heads = ("model.backbone.heads=4", "model.backbone.kv_heads=2")
    where = (f"hydra.searchpath=[file://{HERE / 'conf'}]", f"paths.run_dir={folder}")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=[*where, *SIZES, *heads, *chosen])
    source.mkdir()
    with pytest.raises(UserError, match=rf"^data\.path={source}: has no train\.npy$"):
        train(cfg)
    ids = ByteTokenizer(vocab_size=260).encode(small_text.read_text())
    np.save(source / "train.npy", ids[:40_000])
    np.save(source / "val.npy", ids[40_000:42_000])
    train(cfg)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["val"]["bytes"] == 1999  # the first token has no prediction

    with pytest.raises(UserError, match=r"token_arrays\.TokenArrays.*trust=\[its_name\]"):
        load_model(str(folder), None)
    loaded = load_model(str(folder), None, Trust(("token_arrays",)))
    data = load_data(loaded, {})
    assert data.streams["train"].total == 40_000
    assert (
        data.passes(1, 1).warning().endswith("a longer train.npy or a smaller budget avoids this")
    )
    assert data.split("val").first_bytes(99) == ByteTokenizer(vocab_size=260).decode(
        ids[40_000:40_099]
    )


@pytest.mark.parametrize("shape", [(5, 64), (3, 70), (7,), (2, 3, 5)])
def test_nf4_unpacks_what_it_packs(shape):
    kind, weight = NF4(block=32), torch.randn(shape)
    found = unpack_parts(kind.spec(), kind.pack(weight), shape, lambda path: NF4)
    torch.testing.assert_close(found, kind.fake_quantize(weight), rtol=0, atol=0)
    assert (
        found - weight
    ).abs().max() <= 0.16 * weight.abs().max()  # half the widest gap of levels
    assert max(b - a for a, b in itertools.pairwise(LEVELS)) / 2 < 0.16


def test_a_format_that_is_not_named_is_not_found():
    with pytest.raises(KeyError, match="NF4"):
        unpack_parts(NF4(block=32).spec(), {}, (2, 2))


def test_info_nce_is_least_where_each_finds_its_own():
    rows = torch.eye(8)[None]
    context = StepContext(ProgressClock(max_steps=1, max_time=None))
    right, wrong = (InfoNCE(temperature=0.1)(rows, x, context) for x in (rows, rows.roll(1, 1)))
    assert right < 0.01 < wrong


def test_gated_linear_attention_is_causal_and_its_recurrence():
    torch.manual_seed(0)
    backbone = GatedLinearAttention(dim=16, layers=1, heads=2)
    block, x = backbone.blocks[0], torch.randn(2, 9, 16)
    whole = block(x, x, None)
    changed = x.clone()
    changed[:, 5:] += 1
    torch.testing.assert_close(block(changed, changed, None)[:, :5], whole[:, :5])
    torch.testing.assert_close(block.tail(x, x, None, 3), whole[:, -3:])

    normed = torch.nn.functional.rms_norm(x, (16,), eps=1.1920929e-7)
    q, k, v = (part(normed).view(2, 9, 2, 8) for part in (block.query, block.key, block.value))
    decay = torch.sigmoid(block.gate(normed)) ** (1 / 16)
    state, read = torch.zeros(2, 2, 8, 8), []
    for t in range(9):
        state = decay[:, t, :, None, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        read.append((state * q[:, t, :, :, None]).sum(2))
    y = torch.nn.functional.rms_norm(torch.stack(read, 1), (8,), eps=1.1920929e-7).flatten(2)
    y = x + block.out(y)
    y = y + block.mlp(torch.nn.functional.rms_norm(y, (16,), eps=1.1920929e-7))
    torch.testing.assert_close(whole, y, rtol=1e-4, atol=1e-5)
