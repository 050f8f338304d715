"""Types of the entries of summary.json and config.json that reports read; others may be anything."""

from __future__ import annotations

from typing import Any, TypedDict

from jepa_lm.utils.metrics import MetricName


class Validation(TypedDict, total=False):
    """The final scores."""

    bpb: float | None
    nll: float | None
    floor: float | None
    tokens: int
    bytes: int
    weights: str


class Parameters(TypedDict, total=False):
    """Values in all tensors."""

    shipped: int
    training_only: int


class Git(TypedDict, total=False):
    """Commit of the source code."""

    commit: str | None
    dirty: bool | None
    diff: str | None


class Diagnostics(TypedDict, total=False):
    """The objective's last measurement."""

    effective_rank: float | None
    context_effective_rank: float | None
    target_relative_spread: float | None
    context_relative_spread: float | None
    target_std_median: float | None
    cosine: float | None
    cosine_of_mean: float | None
    r2: float | None
    r2_of_copy: float | None
    trunk_gradient_share: float | None
    trunk_gradient_cosine: float | None
    trunk_step_cosine: float | None
    warnings: list[str]
    collapse: Any


class Summary(TypedDict, total=False):
    """summary.json"""

    status: str
    error: str
    cause: str
    seed: int
    steps: int
    tokens: int
    passes: float
    seconds: float
    tokens_per_second: float | None
    parameters: Parameters
    val: Validation | None
    jepa: Diagnostics
    skipped_steps: int
    memory_bytes: float | None
    flops_per_token: dict[str, float]
    unfinished: list[str]
    ranks: int
    precision: str
    config_hash: str
    source: str
    git: Git | None
    versions: dict[str, str]
    compiled: bool
    compiled_parts: list[str]
    written: str


class Corpus(TypedDict, total=False):
    """Source of the text."""

    _target_: str
    folder: str | None
    path: str | None


class Tokenizer(TypedDict, total=False):
    """Tokenizer of the text."""

    _target_: str
    vocab_size: int | None


class Data(TypedDict, total=False):
    """Data settings."""

    corpus: Corpus
    tokenizer: Tokenizer
    seq_len: int
    batch_tokens: int


class Backbone(TypedDict, total=False):
    """The layers."""

    _target_: str
    layers: int


class Model(TypedDict, total=False):
    """Model settings."""

    dim: int
    backbone: Backbone


class Objective(TypedDict, total=False):
    """The auxiliary loss."""

    _target_: str
    weight: float


class Trainer(TypedDict, total=False):
    """Budget and machine."""

    max_steps: int | None
    max_time: float | None
    accelerator: str
    precision: str


class Config(TypedDict, total=False):
    """config.json"""

    data: Data
    model: Model
    jepa: Objective
    trainer: Trainer
    logger: dict[str, dict[str, Any]] | None
    task_name: str
    seed: int
    metric: MetricName | None
