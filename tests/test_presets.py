"""Every number of the published systems against the presets' resolved configs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from jepa_lm.run import train
from jepa_lm.study.arms import below, differences
from jepa_lm.training.flops import count_parameters
from jepa_lm.utils.config import build, check, resolve
from jepa_lm.utils.paths import CONF

MUON, ADAM = "optimizer.groups.matrices", "optimizer.groups"
LR, MOMENTUM = "optimizer.schedule.lr", "optimizer.schedule.muon_momentum"
STORED = "quantization.rules"
CONTEXT, TARGET, GUARDS = "jepa.context", "jepa.target", "jepa.regularizers"

COMMON = {
    "z_loss_weight": 0.0,
    "trainer.max_steps": None,
    "jepa.prediction_weight": 1.0,
    "jepa.regularizers_weight": 1.0,
    "jepa.schedule": None,
    "jepa.ce_schedule": None,
    "optimizer.ghost_steps": 0,
    f"{LR}._target_": "jepa_lm.schedules.factors.Warmdown",
    f"{LR}.fraction": None,
    f"{LR}.end": 0.0,
    f"{MOMENTUM}._target_": "jepa_lm.schedules.factors.Warmup",
}
"""Parts that no published loop has, and the forms of its schedules."""
TRUNK = {
    "model.dim": 512,
    "model.backbone.heads": 8,
    "model.backbone.kv_heads": 4,
    "model.softcap.cap": 30.0,
    "model.backbone.rope_base": 10000.0,
    "model.embedding.std": 0.005,
    "model.residual": "bfloat16",
    "trainer.max_time": 600,
    "ce_weight": 1.0,
    f"{MUON}.algorithm": "muon",
    f"{MUON}.ns_steps": 5,
    f"{ADAM}.embeddings.algorithm": "adamw",
    f"{ADAM}.vectors.algorithm": "adamw",
    f"{ADAM}.vectors.match": ["vector", "conv"],
    "optimizer.freeze": [],
    **COMMON,
}
SYSTEMS: dict[str, dict[str, Any]] = {
    "pr1581_span_vicreg": {
        "data.corpus.train_shards": 1,
        "data.tokenizer.vocab_size": 1024,
        "data.seq_len": 1024,
        "data.batch_tokens": 262_144,
        "data.order": "stream",
        "model.backbone.layers": 11,
        "model.backbone.mlp_multiple": 3,
        "model.backbone.mlp_negative_slope": 0.5,
        "model.backbone.q_gain": 4.0,
        "model.backbone.rope_dims": 0,
        "model.backbone.xsa_last": 0,
        "model.backbone.ln_scale": False,
        "model.backbone.orthogonal_init": False,
        "model.smear_gate": False,
        "model.value_embedding": None,
        "model.bigram._target_": "jepa_lm.model.embeddings.CantorBigram",
        "model.bigram.buckets": 2048,
        "model.bigram.std": 0.01,
        f"{CONTEXT}.tap": "final",
        f"{CONTEXT}.view.spans": 4,
        f"{CONTEXT}.view.mean_length": 16,
        f"{CONTEXT}.view.min_length": 4,
        f"{CONTEXT}.view.max_share": 1 / 8,
        f"{CONTEXT}.view.hide_next": False,
        f"{CONTEXT}.view.start_std": 0.0,
        "jepa.predictor.hidden": 256,
        "jepa.predictor.activation": "relu2",
        "jepa.predictor.input_norm": "rms",
        "jepa.predictor.residual": True,
        "jepa.predictor.output_start": "zero",
        f"{TARGET}.part": "all",
        f"{TARGET}.tap": "final",
        f"{TARGET}.stop_gradient": True,
        f"{TARGET}.momentum.start": 0.9,
        f"{TARGET}.momentum.end": 0.999,
        "jepa.weight": 0.12,
        "jepa.schedule": {"_target_": "jepa_lm.schedules.factors.Ramp", "steps": 100},
        f"{TARGET}.momentum._target_": "jepa_lm.schedules.factors.Linear",
        f"{GUARDS}.variance.weight": 0.15,
        f"{GUARDS}.variance.gamma": 1.0,
        f"{GUARDS}.variance.eps": 1e-4,
        f"{GUARDS}.variance.tensor": "prediction",
        f"{GUARDS}.covariance.weight": 0.02,
        f"{GUARDS}.covariance.tensor": "prediction",
        f"{GUARDS}.target_variance.weight": 0.0,
        f"{GUARDS}.target_covariance.weight": 0.0,
        f"{ADAM}.auxiliary.match": [],
        f"{MUON}.match": ["matrix"],
        f"{MUON}.lr": 0.04,
        f"{MUON}.weight_decay": 0.0,
        f"{MOMENTUM}.start": 0.85,
        f"{MOMENTUM}.end": 0.95,
        f"{MOMENTUM}.steps": 500,
        f"{ADAM}.vectors.lr": 0.04,
        f"{ADAM}.vectors.weight_decay": 0.0,
        f"{ADAM}.embeddings.lr": 0.05,
        f"{ADAM}.embeddings.weight_decay": 0.0,
        "trainer.accumulate_grad_batches": 8,
        "trainer.gradient_clip_val": None,
        f"{LR}.steps": 1200,
        "average.decay": 0.9999,
        f"{STORED}.weights.format.bits": 6,
        f"{STORED}.weights.format.clip": 0.9999984,
        f"{STORED}.weights.format.min_clip": 1.0,
        f"{STORED}.weights.format.scale_dtype": "float16",
        f"{STORED}.weights.min_values": 65_537,
        f"{STORED}.gains.format.dtype": "float32",
        f"{STORED}.rest.format.dtype": "float16",
    },
    "pr1243_jepardy": {
        "data.corpus.train_shards": 80,
        "data.tokenizer.vocab_size": 1024,
        "data.seq_len": 2048,
        "data.batch_tokens": 786_432,
        "eval.stride": 64,
        "data.order": "stream",
        "model.backbone.layers": 11,
        "model.backbone.mlp_multiple": 3,
        "model.backbone.mlp_negative_slope": 0.5,
        "model.backbone.rope_dims": 16,
        "model.backbone.rope_train_length": 1024,
        "model.backbone.xsa_last": 4,
        "model.backbone.ln_scale": True,
        "model.backbone.orthogonal_init": True,
        "model.smear_gate": True,
        "model.bigram._target_": "jepa_lm.model.embeddings.XorBigram",
        "model.bigram.buckets": 2048,
        "model.bigram.width": 128,
        "model.bigram.scale": 0.05,
        "model.bigram.zero_projection": False,
        "model.value_embedding.layers": [9, 10],
        "model.value_embedding.width": 128,
        "model.value_embedding.scale": 0.1,
        "model.value_embedding.std": 0.01,
        f"{CONTEXT}.tap": "final",
        f"{CONTEXT}.pooling._target_": "jepa_lm.objective.pooling.ChunkLast",
        f"{CONTEXT}.pooling.size": 8,
        f"{TARGET}._target_": "jepa_lm.objective.targets.EmbeddingTable",
        f"{TARGET}.pooling.size": 8,
        f"{TARGET}.normalisation._target_": "jepa_lm.objective.normalisations.RMS",
        f"{TARGET}.stop_gradient": True,
        "jepa.alignment.offsets": [1],
        "jepa.predictor.hidden": 512,
        "jepa.predictor.activation": "relu2",
        "jepa.predictor.input_norm": "rms",
        "jepa.predictor.output_start": "orthogonal",
        "jepa.normalisation._target_": "jepa_lm.objective.normalisations.L2",
        "jepa.distance.reduction": "mean",
        "jepa.weight": 0.10,
        f"{GUARDS}.std.weight": 0.02,
        f"{GUARDS}.std.gamma": 0.5,
        f"{GUARDS}.std.tensor": "prediction",
        f"{ADAM}.auxiliary.match": [],
        f"{MUON}.match": ["matrix"],
        f"{MUON}.lr": 0.025,
        f"{MUON}.weight_decay": 0.04,
        f"{MOMENTUM}.start": 0.92,
        f"{MOMENTUM}.end": 0.99,
        f"{MOMENTUM}.steps": 1500,
        f"{ADAM}.embeddings.lr": 0.035,
        f"{ADAM}.embeddings.weight_decay": 0.04,
        f"{ADAM}.embeddings.betas": [0.9, 0.95],
        f"{ADAM}.vectors.match": [
            "vector",
            "conv",
            "model.bigram.expand.weight",
            "model.value_embedding.expand.weight",
        ],
        f"{ADAM}.vectors.lr": 0.025,
        f"{ADAM}.vectors.weight_decay": 0.04,
        f"{ADAM}.vectors.betas": [0.9, 0.95],
        "trainer.gradient_clip_val": 0.3,
        f"{LR}.steps": 3500,
        "average.decay": 0.997,
        f"{STORED}.weights.format.bits": 6,
        f"{STORED}.weights.format.clip": [0.999, 0.9995, 0.9999, 0.99999, 1.0],
        f"{STORED}.weights.format.one_clip": True,
        f"{STORED}.weights.format.min_clip": 1.0,
        f"{STORED}.weights.format.scale_dtype": "float16",
        "quantization.training.start": None,
        "quantization.training.lr_below": 0.15,
        f"{STORED}.weights.min_values": 65_537,
    },
    "pr832_byte_chunk": {
        "data.corpus.train_shards": 80,
        "data.tokenizer.vocab_size": 260,
        "data.seq_len": 4096,
        "data.batch_tokens": 393_216,
        "eval.stride": 512,
        "data.order": "stream",
        "model.backbone.layers": 13,
        "model.backbone.mlp_multiple": 2,
        "model.backbone.mlp_negative_slope": 0.5,
        "model.backbone.rope_dims": 16,
        "model.backbone.rope_train_length": 4096,
        "model.backbone.xsa_last": 4,
        "model.backbone.ln_scale": True,
        "model.backbone.orthogonal_init": True,
        "model.smear_gate": True,
        "model.value_embedding": None,
        "model.bigram._target_": "jepa_lm.model.embeddings.XorBigram",
        "model.bigram.buckets": 4096,
        "model.bigram.width": 32,
        "model.injector.chunk": 8,
        "model.injector.hidden": 256,
        "model.injector.latent": 256,
        "model.injector.start_std": 0.02,
        "model.injector.orthogonal_init": False,
        f"{CONTEXT}.tap": "injector_prediction",
        f"{TARGET}.tap": "injector_latent",
        f"{TARGET}.stop_gradient": True,
        "jepa.weight": 0.001,
        "jepa.schedule": {
            "_target_": "jepa_lm.schedules.factors.Phased",
            "points": [[0.0, 0.0], [0.3, 0.0], [0.8, 1.0], [0.8, 0.0]],
            "over": "steps",
        },
        "jepa.when_zero": "multiply",
        f"{GUARDS}.sigreg.weight": 0.02,
        f"{GUARDS}.sigreg.tensor": "target",
        f"{GUARDS}.sigreg.directions": 256,
        f"{GUARDS}.sigreg.knots": 17,
        f"{GUARDS}.sigreg.low": 0.2,
        f"{GUARDS}.sigreg.high": 3.0,
        f"{GUARDS}.sigreg.window": False,
        f"{GUARDS}.sigreg.per_step": False,
        f"{GUARDS}.sigreg.standardise": True,
        f"{GUARDS}.sigreg.fresh": False,
        f"{MUON}.lr": 0.025,
        f"{MUON}.weight_decay": 0.04,
        f"{MOMENTUM}.start": 0.92,
        f"{MOMENTUM}.end": 0.99,
        f"{MOMENTUM}.steps": 1500,
        f"{ADAM}.embeddings.lr": 0.035,
        f"{ADAM}.embeddings.weight_decay": 0.04,
        f"{ADAM}.vectors.lr": 0.025,
        f"{ADAM}.vectors.weight_decay": 0.04,
        f"{ADAM}.auxiliary.match": ["model.injector.*", "objective.*"],
        f"{ADAM}.auxiliary.algorithm": "adamw",
        f"{ADAM}.auxiliary.lr": 0.001,
        f"{ADAM}.auxiliary.weight_decay": 0.0,
        "trainer.gradient_clip_val": 0.3,
        f"{LR}.steps": 3000,
        f"{LR}.over": "time",
        "trainer.max_steps": 9000,
        "average.decay": 0.997,
        f"{STORED}.blocks.format.bits": 6,
        f"{STORED}.blocks.format.min_clip": 1.0,
        f"{STORED}.large.format.bits": 8,
        f"{STORED}.large.format.clip": 0.9999984,
        f"{STORED}.large.format.min_clip": 1.0,
        f"{STORED}.large.min_values": 65_537,
        f"{STORED}.rest.format.dtype": "float16",
    },
    "pr1196_llm_jepa": {
        "data.corpus.train_shards": 1,
        "data.tokenizer.vocab_size": 1024,
        "data.seq_len": 1024,
        "data.batch_tokens": 524_288,
        "data.order": "stream",
        "model.backbone.layers": 9,
        "model.backbone.mlp_multiple": 2,
        "model.backbone.mlp_negative_slope": 0.0,
        "model.backbone.q_gain": 1.5,
        "model.backbone.rope_dims": 0,
        "model.backbone.xsa_last": 0,
        "model.backbone.ln_scale": False,
        "model.backbone.orthogonal_init": False,
        "model.smear_gate": False,
        "model.bigram": None,
        "model.value_embedding": None,
        f"{CONTEXT}.tap": "last",
        f"{CONTEXT}.pooling.fraction": 0.75,
        f"{TARGET}.view._target_": "jepa_lm.objective.views.Suffix",
        f"{TARGET}.view.fraction": 0.75,
        f"{TARGET}.tap": "last",
        f"{TARGET}.pooling._target_": "jepa_lm.objective.pooling.SequenceMean",
        f"{TARGET}.stop_gradient": True,
        "jepa.predictor.hidden": 1024,
        "jepa.predictor.activation": "gelu",
        "jepa.predictor.bias": True,
        "jepa.weight": 0.1,
        "jepa.schedule": {"_target_": "jepa_lm.schedules.factors.After", "steps": 100},
        f"{ADAM}.auxiliary.match": ["objective.*"],
        f"{ADAM}.auxiliary.lr": 0.04,
        f"{MUON}.lr": 0.04,
        f"{MOMENTUM}.start": 0.85,
        f"{MOMENTUM}.end": 0.95,
        f"{MOMENTUM}.steps": 500,
        f"{ADAM}.embeddings.lr": 0.05,
        f"{ADAM}.vectors.lr": 0.04,
        f"{LR}.steps": 1200,
        "average.decay": None,
        f"{STORED}.weights.format.bits": 8,
        f"{STORED}.weights.format.clip": 0.9999984,
        f"{STORED}.weights.format.min_clip": 1.0,
        f"{STORED}.weights.min_values": 65_537,
        f"{STORED}.gains.format.dtype": "float32",
        f"{STORED}.rest.format.dtype": "float16",
    },
}
LEWM = {
    **COMMON,
    f"{GUARDS}.sigreg.schedule": None,
    f"{GUARDS}.sigreg.tensor": "context",
    f"{CONTEXT}.tap": "final",
    f"{TARGET}.tap": "final",
    "jepa.weight": 1.0,
    "jepa.prediction_weight": 1.0,
    "jepa.alignment.steps": 3,
    "jepa.target.stop_gradient": False,
    "jepa.projector._target_": "jepa_lm.objective.predictors.Projection",
    "jepa.predictor.parts.mlp.activation": "gelu",
    "jepa.predictor.parts.mlp.bias": True,
    "jepa.predictor.parts.mlp.output_start": "zero",
    f"{GUARDS}.sigreg.weight": 1.0,
    f"{GUARDS}.sigreg.knots": 17,
    f"{GUARDS}.sigreg.low": 0.2,
    f"{GUARDS}.sigreg.high": 4.0,
    f"{GUARDS}.sigreg.window": True,
    f"{GUARDS}.sigreg.per_step": True,
    f"{GUARDS}.sigreg.max_steps": 64,
    f"{GUARDS}.sigreg.standardise": False,
    f"{GUARDS}.sigreg.fresh": False,
    "data.corpus.train_shards": 1,
    "data.order": "stream",
    "data.batch_tokens": 524_288,
    "model.backbone._target_": "jepa_lm.model.mamba2.Mamba2",
    "model.backbone.layers": 10,
    "model.backbone.state_dim": 64,
    "model.backbone.conv_width": 4,
    "model.backbone.head_dim": 64,
    "model.backbone.groups": 1,
    "model.backbone.expand": 1,
    "model.backbone.mlp_every": 2,
    "model.backbone.norm_eps": 1e-6,
    "model.backbone.gated_norm_eps": 1e-5,
    "model.norm_eps": 1.1920929e-7,
    "model.final_norm_eps": 1e-6,
    "model.embedding.std": 0.02,
    "model.head._target_": "jepa_lm.model.heads.TiedHead",
    "model.head.correction": False,
    "model.head.gelu": False,
    "model.logit_bias": True,
    "model.bigram": None,
    "model.smear_gate": False,
    "model.softcap._target_": "jepa_lm.model.heads.PolynomialSoftcap",
    "model.softcap.cap": 15.0,
    "ce_weight": 1.0,
    "z_loss_weight": 1e-4,
    "temperature": "search",
    f"{ADAM}.auxiliary.match": [],
    f"{MUON}.match": ["matrix", "head"],
    f"{MUON}.algorithm": "muon",
    f"{MUON}.lr": 0.02,
    f"{MUON}.ns_steps": 3,
    f"{MUON}.weight_decay": 0.04,
    f"{MUON}.update_scale": "rows_over_cols",
    f"{MUON}.row_normalize": True,
    f"{MOMENTUM}.start": 0.85,
    f"{MOMENTUM}.end": 0.95,
    f"{MOMENTUM}.steps": 500,
    f"{ADAM}.embeddings.algorithm": "adamw",
    f"{ADAM}.embeddings.lr": 0.01,
    f"{ADAM}.embeddings.betas": [0.9, 0.95],
    f"{ADAM}.embeddings.weight_decay": 0.05,
    f"{ADAM}.vectors.match": ["vector", "conv"],
    f"{ADAM}.vectors.algorithm": "adamw",
    f"{ADAM}.vectors.lr": 0.01,
    f"{ADAM}.vectors.betas": [0.9, 0.95],
    f"{ADAM}.vectors.weight_decay": 0.05,
    "optimizer.freeze": [],
    "optimizer.ghost_steps": 10,
    f"{LR}._target_": "jepa_lm.schedules.factors.Warmdown",
    f"{LR}.fraction": 0.15,
    f"{LR}.steps": None,
    f"{LR}.end": 0.0,
    "trainer.gradient_clip_val": 1.0,
    "trainer.max_steps": None,
    "trainer.max_time": 600,
    "average.decay": None,
    f"{STORED}.weights.match": ["matrix"],
    f"{STORED}.weights.min_values": 4096,
    f"{STORED}.weights.format.bits": 4,
    f"{STORED}.weights.format.clip": 1.0,
    f"{STORED}.weights.format.scale_dtype": "bfloat16",
    f"{STORED}.weights.format.min_clip": None,
    "quantization.training.scale_dtype": "float32",
    "quantization.training.start": 0.0,
    "quantization.training.lr_below": None,
    "quantization.training.clip": 1.0,
    f"{STORED}.tables.format._target_": "jepa_lm.quantization.formats.Float8",
    f"{STORED}.tables.format.scale_dtype": None,
    f"{STORED}.tables.ndim": 2,
    f"{STORED}.rest.format.dtype": "bfloat16",
}
LEWM_SIZES: dict[str, dict[str, Any]] = {
    "pr903_lewm_bpe": {
        "data.tokenizer.vocab_size": 8192,
        "data.corpus.folder": "fineweb10B_sp8192",
        "data.seq_len": 1024,
        "model.dim": 640,
        "model.embedding.factor_dim": 336,
        "model.backbone.mlp_multiple": 4,
        "jepa.predictor.parts.mlp.hidden": 4 * 640,
        f"{GUARDS}.sigreg.directions": 2 * 336,
        "eval.stride": 16,
    },
    "pr903_lewm_byte": {
        "data.tokenizer.vocab_size": 256,
        "data.corpus.folder": "fineweb10B_byte260",
        "data.corpus.special_ids": 4,
        "data.seq_len": 8192,
        "model.dim": 768,
        "model.embedding.factor_dim": 256,
        "model.backbone.mlp_multiple": 3,
        "jepa.predictor.parts.mlp.hidden": 4 * 768,
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
def test_a_preset_has_every_published_number(compose, preset):
    config = resolve(compose("train", f"experiment={preset}"))
    check(config)
    assert wrong_numbers(config, preset) == {}


UNKNOWN = ("pr1581_span_vicreg", "pr1196_llm_jepa", "pr903_lewm_bpe", "pr903_lewm_byte")


@pytest.mark.parametrize("preset", TABLES)
def test_a_number_of_shards_that_nobody_published_is_said_to_be_unknown(preset):
    said = (CONF / "experiment" / f"{preset}.yaml").read_text()
    assert ("published run read is unknown" in said) == (preset in UNKNOWN)


def test_a_wrong_number_would_be_seen(compose, monkeypatch):
    """Planted bugs: the right shapes and a wrong learning rate, and a key that no config has."""
    config = resolve(compose("train", "experiment=pr1243_jepardy", f"{MUON}.lr=0.02"))
    assert wrong_numbers(config, "pr1243_jepardy") == {f"{MUON}.lr": (0.02, 0.025)}
    monkeypatch.setitem(TABLES["pr1243_jepardy"], f"{MUON}.learning_rate", None)
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
