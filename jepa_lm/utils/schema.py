"""Typed schemas of train.yaml, eval.yaml and export.yaml: Hydra refuses other keys and types.

Config groups are `Any` here; `jepa_lm.utils.config` checks them against the classes that they name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, OmegaConf

from jepa_lm.utils import gpus
from jepa_lm.utils.kinds import Count, Decay, NotNegative, Positive, Seed, Whole
from jepa_lm.utils.metrics import MetricName

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Ship = Literal["auto", "raw", "ema", "swa", "best"]
Card = Literal["h100", "h200"]
Protocol = Literal["standard", "sliding", "stream"]
Reset = Literal["none", "document"]
SEARCH = "search"
"""Value of a temperature: fit it on training tokens."""
Temperature = Annotated[Any, Positive | Literal["search"]]


@dataclass
class Sampling:
    """The sample text shown after training."""

    prompt: str | None = MISSING
    tokens: Whole = MISSING
    temperature: NotNegative = MISSING
    seed: Seed = MISSING


@dataclass
class Paths:
    """Folders: `run_dir` for the output of a run, `cache` for prepared data."""

    run_dir: str = MISSING
    cache: str = "~/.cache/jepa_lm"


@dataclass
class Limits:
    """Maximum that a file may ask for before memory is allocated. Set by the user, never by a file."""

    tensor_values: Count = 1 << 31
    blocks: Count = 1000
    tensors: Count = 100_000
    bytes: Count = 8 * 10**9


@dataclass
class Average:
    """Averages of the weights, and which weights ship; see `jepa_lm.training.averages.WeightAverages`."""

    decay: Decay | None = MISSING
    swa: bool = MISSING
    swa_every: Count = MISSING
    ship: Annotated[str, Ship] = MISSING


@dataclass
class Checkpointing:
    """When checkpoints are written and how many are kept."""

    every_n_steps: Count | None = MISSING
    keep: Count = MISSING


@dataclass
class Guard:
    """How many steps whose gradient is NaN or infinite are skipped before the run stops."""

    skip: Whole = MISSING


@dataclass
class EvaluationDefaults:
    """Defaults that eval.py uses for this run."""

    stride: int = MISSING


@dataclass
class TrainConfig:
    """Schema of train.yaml."""

    data: Any = MISSING
    model: Any = MISSING
    jepa: Any = MISSING
    tokens: Any = MISSING
    optimizer: Any = MISSING
    quantization: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    task_name: str = MISSING
    tags: list[str] = MISSING
    study: Any = None
    seed: Seed = MISSING
    ckpt_path: str | None = MISSING
    compile: bool | None = MISSING
    metric: Annotated[str, MetricName] | None = MISSING
    ce_weight: NotNegative = MISSING
    z_loss_weight: NotNegative = MISSING
    temperature: Temperature = MISSING
    eval: EvaluationDefaults = field(default_factory=EvaluationDefaults)
    describe: bool = MISSING
    describe_for: Annotated[str, Card] | None = MISSING
    sample: bool = MISSING
    probe: bool = MISSING
    average: Average = field(default_factory=Average)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    guard: Guard = field(default_factory=Guard)
    sampling: Sampling = field(default_factory=Sampling)
    trust: list[str] = MISSING
    limits: Limits = field(default_factory=Limits)
    paths: Paths = field(default_factory=Paths)


@dataclass
class Evaluation:
    """How text is cut into windows, and what is reported besides the score."""

    protocol: Annotated[str, Protocol] = MISSING
    seq_len: Count | None = MISSING
    batch_tokens: Count | None = MISSING
    stride: Count | None = MISSING
    reset: Annotated[str, Reset] | None = MISSING
    temperature: Annotated[Any, Positive | Literal["search"] | None] = MISSING
    max_seconds: float = MISSING
    precision: Annotated[str, Precision] | None = MISSING
    compile: bool | None = MISSING
    audit: bool | None = MISSING
    baselines: bool | None = MISSING
    baseline_bytes: Count = MISSING


@dataclass
class TextToScore:
    """Text to score instead of the run's own."""

    path: str | None = MISSING
    val_path: str | None = MISSING
    cache_dir: str = MISSING


@dataclass
class EvalConfig:
    """Schema of eval.yaml."""

    eval: Evaluation = field(default_factory=Evaluation)
    data: TextToScore = field(default_factory=TextToScore)
    task_name: str = MISSING
    ckpt_path: str | None = MISSING
    artifact_path: str | None = MISSING
    logger: Any = field(default_factory=dict)
    tags: list[str] = MISSING
    device: str = MISSING
    devices: Count = MISSING
    trust: list[str] = MISSING
    limits: Limits = field(default_factory=Limits)
    paths: Paths = field(default_factory=Paths)


@dataclass
class Export:
    """How the exported file is made, how large it may be and how much it may lose."""

    cap_bytes: int = MISSING
    code: str = MISSING
    codecs: list[str] = MISSING
    streams: str = MISSING
    tokenizer: str | None = MISSING
    protocols: list[str] = MISSING
    stride: int | None = MISSING
    max_tokens: int | None = MISSING
    max_bpb_loss: float = MISSING


@dataclass
class Submission:
    """Fields of submission.json that are not in the run's records."""

    author: str | None = MISSING
    github_id: str | None = MISSING
    name: str | None = MISSING
    blurb: str | None = MISSING


@dataclass
class ExportConfig:
    """Schema of export.yaml."""

    quantization: Any = None
    task_name: str = MISSING
    ckpt_path: str = MISSING
    logger: Any = field(default_factory=dict)
    tags: list[str] = MISSING
    temperature: Annotated[Any, Positive | Literal["search"] | None] = MISSING
    device: str = MISSING
    export: Export = field(default_factory=Export)
    push: str | None = MISSING
    submission: Submission = field(default_factory=Submission)
    trust: list[str] = MISSING
    limits: Limits = field(default_factory=Limits)
    paths: Paths = field(default_factory=Paths)


SCHEMAS = {"train": TrainConfig, "eval": EvalConfig, "export": ExportConfig}


def run_folder() -> str:
    """Return the folder of this run; for `--cfg job`, which creates none, the planned folder."""
    hydra = HydraConfig.get()
    made = None if OmegaConf.is_missing(hydra.runtime, "output_dir") else hydra.runtime.output_dir
    return str(made or hydra.run.dir)


RESOLVERS: dict[str, Callable[..., Any]] = {
    "times": operator.mul,  # ${times:4,${model.dim}}
    "smaller": min,  # ${smaller:64,${data.seq_len}}
    "gpus": gpus.count,
    "accelerator": gpus.accelerator,
    "run_folder": run_folder,
}


def register() -> None:
    """Register the schemas with Hydra and the resolvers with OmegaConf."""
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    store = ConfigStore.instance()
    for command, schema in SCHEMAS.items():
        store.store(name=f"{command}_schema", node=schema)
