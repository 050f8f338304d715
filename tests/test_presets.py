"""The presets' configs against the published systems: a committed table of every number, and what it hides.

The rows below are numbers of the publications that no test of behaviour would miss. Formats of storage are
also held by tests/quantization/test_preset_storage.py, initial values by tests/test_preset_starts.py, the
forms and weights of losses by tests/objective/test_vectors.py, rates and clipping by
tests/optim/test_trajectories.py.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import torch

from jepa_lm.run import train
from jepa_lm.study.arms import below, differences
from jepa_lm.training.flops import count_parameters
from jepa_lm.utils.config import build, check, resolve
from jepa_lm.utils.paths import CONF
from tests import preset_table

MUON, ADAM = "optimizer.groups.matrices", "optimizer.groups"
LR, MOMENTUM = "optimizer.schedule.lr", "optimizer.schedule.muon_momentum"
STORED = "quantization.rules"
CONTEXT, TARGET, GUARDS = "jepa.context", "jepa.target", "jepa.regularizers"

COMMON = {
    "ce_weight": 1.0,
    "trainer.max_steps": None,
    "jepa.regularizers_weight": 1.0,
    "jepa.schedule": None,
    "jepa.ce_schedule": None,
    "optimizer.ghost_steps": 0,
    f"{LR}.fraction": None,
    f"{LR}.end": 0.0,
}
"""Parts that no published loop has, and the forms of its schedules."""
TRUNK = {
    "model.softcap.cap": 30.0,
    "model.residual": "bfloat16",
    "trainer.max_time": 600,
    "z_loss_weight": 0.0,
    f"{ADAM}.vectors.match": ["vector", "conv"],
    "optimizer.freeze": [],
    **COMMON,
}
SYSTEMS: dict[str, dict[str, Any]] = {
    "pr1581_span_vicreg": {
        "data.corpus.train_shards": 1,
        "data.seq_len": 1024,
        "data.batch_tokens": 262_144,
        "data.order": "stream",
        "model.backbone.rope_dims": 0,
        "model.backbone.xsa_last": 0,
        "model.value_embedding": None,
        "model.bigram._target_": "jepa_lm.model.embeddings.CantorBigram",
        f"{CONTEXT}.view.spans": 4,
        f"{CONTEXT}.view.mean_length": 16,
        f"{CONTEXT}.view.min_length": 4,
        f"{CONTEXT}.view.max_share": 1 / 8,
        "jepa.predictor.input_norm": "rms",
        f"{TARGET}.part": "all",
        f"{TARGET}.stop_gradient": True,
        f"{TARGET}.momentum.start": 0.9,
        f"{TARGET}.momentum.end": 0.999,
        "jepa.schedule": {"_target_": "jepa_lm.schedules.factors.Ramp", "steps": 100},
        f"{TARGET}.momentum._target_": "jepa_lm.schedules.factors.Linear",
        f"{GUARDS}.variance.tensor": "prediction",
        f"{GUARDS}.covariance.tensor": "prediction",
        f"{GUARDS}.target_variance.weight": 0.0,
        f"{GUARDS}.target_covariance.weight": 0.0,
        f"{ADAM}.auxiliary.match": [],
        f"{MUON}.weight_decay": 0.0,
        f"{MOMENTUM}.steps": 500,
        f"{ADAM}.vectors.weight_decay": 0.0,
        f"{ADAM}.embeddings.weight_decay": 0.0,
        "trainer.accumulate_grad_batches": 8,
        "trainer.gradient_clip_val": None,
        f"{LR}.steps": 1200,
        "average.decay": 0.9999,
        f"{STORED}.weights.format.clip": 0.9999984,
        f"{STORED}.rest.format.dtype": "float16",
    },
    "pr1243_jepardy": {
        "data.corpus.train_shards": 80,
        "data.seq_len": 2048,
        "data.batch_tokens": 786_432,
        "eval.stride": 64,
        "data.order": "stream",
        "model.backbone.rope_dims": 16,
        "model.backbone.rope_train_length": 1024,
        "model.backbone.xsa_last": 4,
        "model.bigram._target_": "jepa_lm.model.embeddings.XorBigram",
        "model.value_embedding.layers": [9, 10],
        f"{CONTEXT}.tap": "final",
        f"{CONTEXT}.pooling._target_": "jepa_lm.objective.pooling.ChunkLast",
        f"{CONTEXT}.pooling.size": 8,
        f"{TARGET}._target_": "jepa_lm.objective.targets.EmbeddingTable",
        f"{TARGET}.pooling.size": 8,
        f"{TARGET}.normalisation._target_": "jepa_lm.objective.normalisations.RMS",
        "jepa.alignment.offsets": [1],
        "jepa.predictor.input_norm": "rms",
        "jepa.normalisation._target_": "jepa_lm.objective.normalisations.L2",
        "jepa.distance.reduction": "mean",
        f"{GUARDS}.std.tensor": "prediction",
        f"{ADAM}.auxiliary.match": [],
        f"{MOMENTUM}.steps": 1500,
        f"{ADAM}.vectors.match": [
            "vector",
            "conv",
            "model.bigram.expand.weight",
            "model.value_embedding.expand.weight",
        ],
        f"{LR}.steps": 3500,
        "average.decay": 0.997,
        f"{STORED}.weights.format.clip": [0.999, 0.9995, 0.9999, 0.99999, 1.0],
        f"{STORED}.weights.format.one_clip": True,
        "quantization.training.start": None,
        "quantization.training.lr_below": 0.15,
    },
    "pr832_byte_chunk": {
        "data.corpus.train_shards": 80,
        "data.seq_len": 4096,
        "data.batch_tokens": 393_216,
        "eval.stride": 512,
        "data.order": "stream",
        "model.backbone.rope_dims": 16,
        "model.backbone.rope_train_length": 4096,
        "model.backbone.xsa_last": 4,
        "model.value_embedding": None,
        "model.bigram._target_": "jepa_lm.model.embeddings.XorBigram",
        f"{CONTEXT}.tap": "injector_prediction",
        f"{TARGET}.tap": "injector_latent",
        "jepa.schedule": {
            "_target_": "jepa_lm.schedules.factors.Phased",
            "points": [[0.0, 0.0], [0.3, 0.0], [0.8, 1.0], [0.8, 0.0]],
            "over": "steps",
        },
        "jepa.when_zero": "multiply",
        f"{GUARDS}.sigreg.tensor": "target",
        f"{GUARDS}.sigreg.directions": 256,
        f"{MOMENTUM}.steps": 1500,
        f"{ADAM}.auxiliary.match": ["model.injector.*", "objective.*"],
        f"{ADAM}.auxiliary.algorithm": "adamw",
        f"{ADAM}.auxiliary.weight_decay": 0.0,
        f"{LR}.steps": 3000,
        f"{LR}.over": "time",
        "trainer.max_steps": 9000,
        "average.decay": 0.997,
        f"{STORED}.large.format.clip": 0.9999984,
    },
    "pr1196_llm_jepa": {
        "data.corpus.train_shards": 1,
        "data.seq_len": 1024,
        "data.batch_tokens": 524_288,
        "data.order": "stream",
        "model.backbone.rope_dims": 0,
        "model.backbone.xsa_last": 0,
        "model.bigram": None,
        "model.value_embedding": None,
        f"{CONTEXT}.pooling.fraction": 0.75,
        f"{TARGET}.view._target_": "jepa_lm.objective.views.Suffix",
        f"{TARGET}.view.fraction": 0.75,
        f"{TARGET}.pooling._target_": "jepa_lm.objective.pooling.SequenceMean",
        "jepa.schedule": {"_target_": "jepa_lm.schedules.factors.After", "steps": 100},
        f"{ADAM}.auxiliary.match": ["objective.*"],
        f"{MOMENTUM}.steps": 500,
        f"{LR}.steps": 1200,
        "average.decay": None,
        f"{STORED}.weights.format.clip": 0.9999984,
        f"{STORED}.rest.format.dtype": "float16",
    },
}
LEWM = {
    **COMMON,
    f"{GUARDS}.sigreg.schedule": None,
    f"{GUARDS}.sigreg.tensor": "context",
    "jepa.projector._target_": "jepa_lm.objective.predictors.Projection",
    f"{GUARDS}.sigreg.max_steps": 64,
    "data.corpus.train_shards": 1,
    "data.order": "stream",
    "data.batch_tokens": 524_288,
    "model.backbone._target_": "jepa_lm.model.mamba2.Mamba2",
    "model.backbone.norm_eps": 1e-6,
    "model.backbone.gated_norm_eps": 1e-5,
    "model.final_norm_eps": 1e-6,
    "model.head._target_": "jepa_lm.model.heads.TiedHead",
    "model.bigram": None,
    "model.softcap._target_": "jepa_lm.model.heads.PolynomialSoftcap",
    "temperature": "search",
    f"{ADAM}.auxiliary.match": [],
    f"{MOMENTUM}.steps": 500,
    f"{ADAM}.vectors.match": ["vector", "conv"],
    "optimizer.freeze": [],
    "optimizer.ghost_steps": 10,
    f"{LR}.fraction": 0.15,
    f"{LR}.steps": None,
    f"{LR}.end": 0.0,
    "trainer.max_steps": None,
    "trainer.max_time": 600,
    "average.decay": None,
    f"{STORED}.weights.match": ["matrix"],
    f"{STORED}.weights.min_values": 4096,
    f"{STORED}.weights.format.clip": 1.0,
    f"{STORED}.weights.format.min_clip": None,
    "quantization.training.scale_dtype": "float32",
    "quantization.training.start": 0.0,
    "quantization.training.lr_below": None,
    "quantization.training.clip": 1.0,
    f"{STORED}.tables.format._target_": "jepa_lm.quantization.formats.Float8",
    f"{STORED}.tables.format.scale_dtype": None,
}
LEWM_SIZES: dict[str, dict[str, Any]] = {
    "pr903_lewm_bpe": {
        "data.corpus.folder": "fineweb10B_sp8192",
        "data.seq_len": 1024,
        f"{GUARDS}.sigreg.directions": 2 * 336,
        "eval.stride": 16,
    },
    "pr903_lewm_byte": {
        "data.corpus.folder": "fineweb10B_byte260",
        "data.corpus.special_ids": 4,
        "data.seq_len": 8192,
        f"{GUARDS}.sigreg.directions": 2 * 256,
        "eval.stride": 128,
    },
}


OPTIONAL = {"model.value_embedding", "model.bigram"}
"""Parts that are absent from a config that does not choose them."""


def at(config: dict[str, Any], key: str) -> Any:
    node: Any = config
    *parts, last = key.split(".")
    for part in parts:
        node = node[part]
    return node.get(last) if key in OPTIONAL else node[last]


def wrong_numbers(config: dict[str, Any], preset: str) -> dict[str, Any]:
    """Return what a config has and what it should have, by the keys that are wrong."""
    found = {key: (at(config, key), value) for key, value in TABLES[preset].items()}
    return {key: pair for key, pair in found.items() if pair[0] != pair[1]}


TABLES = {name: TRUNK | table for name, table in SYSTEMS.items()} | {
    name: LEWM | sizes for name, sizes in LEWM_SIZES.items()
}


def test_eight_gpus_draw_as_many_span_sets_as_eight_micro_batches(compose):
    one, eight = (
        resolve(compose("train", f"experiment=pr1581_span_vicreg{more}")) for more in ("", "_8gpu")
    )
    changed = differences(one, eight)
    assert changed["jepa.draws"] == ("shared", "per_rank")
    assert changed["trainer.accumulate_grad_batches"] == (8, 1)
    assert {key for key in changed if not key.startswith("trainer.")} == {"jepa.draws"}
    assert eight["trainer"]["devices"] == 8


@pytest.mark.parametrize("preset", TABLES)
def test_a_preset_has_the_published_numbers(compose, preset):
    config = resolve(compose("train", f"experiment={preset}"))
    check(config)
    assert wrong_numbers(config, preset) == {}


UNKNOWN = ("pr1581_span_vicreg", "pr1196_llm_jepa", "pr903_lewm_bpe", "pr903_lewm_byte")


@pytest.mark.parametrize("preset", TABLES)
def test_a_number_of_shards_that_nobody_published_is_said_to_be_unknown(preset):
    said = (CONF / "experiment" / f"{preset}.yaml").read_text()
    assert ("published run read is unknown" in said) == (preset in UNKNOWN)


def test_a_wrong_number_would_be_seen(compose, monkeypatch):
    """Planted bugs: the right shapes and a wrong decay, and a key that no config has."""
    config = resolve(compose("train", "experiment=pr1243_jepardy", "average.decay=0.9"))
    assert wrong_numbers(config, "pr1243_jepardy") == {"average.decay": (0.9, 0.997)}
    monkeypatch.setitem(TABLES["pr1243_jepardy"], "average.decoy", None)
    with pytest.raises(KeyError):
        wrong_numbers(config, "pr1243_jepardy")


def test_the_isolation_lane_is_1243_on_bytes(compose):
    lane, whole = (
        resolve(compose("train", f"experiment={n}"))
        for n in ("pr1243_isolation_byte", "pr1243_jepardy")
    )
    text = ("data.corpus", "data.tokenizer")
    other = [key for key in differences(whole, lane) if not below(key, text)]
    assert all(key.endswith("vocab_size") for key in other), other
    assert lane["data"]["tokenizer"]["vocab_size"] == 260
    assert lane["data"]["corpus"]["train_shards"] == 80
    without = resolve(
        compose("train", "experiment=pr1243_isolation_byte", "average.decay=null", "objective=none")
    )
    assert without["average"]["decay"] is None
    assert without["jepa"] == {"weight": 0.0}


@pytest.mark.parametrize("preset", preset_table.PRESETS)
def test_every_number_of_a_preset_is_the_committed_one(compose, preset):
    """A wrong rate, clip or schedule has the right shapes; see `tests/preset_table.py`."""
    table = json.loads(preset_table.FILE.read_text(encoding="utf-8"))
    assert preset_table.numbers(partial(compose, "train"), preset) == table[preset]


@pytest.mark.parametrize(
    "planted",
    [
        "optimizer.groups.matrices.lr=0.021",
        "trainer.gradient_clip_val=0.31",
        "optimizer.schedule.lr.end=0.2",
        "jepa.weight=0.13",
        "average.decay=0.998",
        "quantization.training.start=0.8",
    ],
)
def test_a_number_that_has_changed_would_be_seen(compose, planted):
    table = json.loads(preset_table.FILE.read_text(encoding="utf-8"))
    for preset in preset_table.PRESETS:
        found = preset_table.numbers(lambda *words: compose("train", *words, planted), preset)
        changed = {key for key in found if found[key] != table[preset][key]}
        assert changed == {planted.partition("=")[0]}, preset


COUNTS = {
    "pr1581_span_vicreg": (27_550_296, 262_656),
    "pr1243_jepardy": (26_993_756, 524_288),
    "pr832_byte_chunk": (24_625_001, 0),
    "pr1196_llm_jepa": (17_059_912, 1_050_112),
    "pr903_lewm_bpe": (32_816_684, 4_099_200),
    "pr903_lewm_byte": (37_007_208, 5_902_080),
}


@pytest.mark.parametrize("preset", COUNTS)
def test_parameter_counts_are_the_published_ones(compose, preset):
    config = resolve(compose("train", f"experiment={preset}"))
    with torch.device("meta"):  # only shapes
        parts = [build(part, config[part]) for part in ("model", "jepa")]
    assert tuple(count_parameters(part) for part in parts) == COUNTS[preset]


@pytest.mark.slow
@pytest.mark.parametrize("preset", COUNTS)
def test_describe_shows_them(compose, capsys, preset):
    train(compose("train", f"experiment={preset}", "describe=true"))
    about = json.loads(capsys.readouterr().out)
    shipped, training_only = COUNTS[preset]
    assert about["parameters"] == {"shipped": shipped, "training_only": training_only}
    ratio = 1 + about["flops_per_token"]["objective"] / about["flops_per_token"]["model"]
    expected = {
        "pr1581_span_vicreg": 2.32,
        "pr1196_llm_jepa": 1.08,
        "pr903_lewm_bpe": 1.32,
        "pr903_lewm_byte": 1.41,
    }.get(preset, 1.0)
    assert ratio == pytest.approx(expected, abs=0.02)
    trunk = about["gradient_reach"]["prediction"]["model.backbone.blocks.0"]
    assert (trunk == 0) == (preset == "pr832_byte_chunk")
