"""export(cfg): quantize and compress a checkpoint's model, and account for its size and score."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from jepa_lm.artifact.card import model_card, run_records, submission
from jepa_lm.artifact.export_table import judge, print_account
from jepa_lm.artifact.hub_push import push, target
from jepa_lm.artifact.loaded_model import (
    HeldFile,
    held_model_file,
    load_data,
    model_of_checkpoint,
    pick_device,
    weights_of,
)
from jepa_lm.artifact.prediction import predict
from jepa_lm.artifact.publishing import (
    ACCOUNT,
    CARD,
    DIGEST_KEY,
    RUN_CONFIG,
    SUBMISSION,
    check_code_folder,
    publish,
)
from jepa_lm.artifact.round_trip import check_stride, round_trip
from jepa_lm.artifact.settings import check_settings, policy, quantization
from jepa_lm.artifact.size import FULL, counted_bytes, whole_bytes
from jepa_lm.artifact.suggestions import Attempt, ways_under
from jepa_lm.artifact.tokenizer import BESIDE, INSIDE, NONE, serialized
from jepa_lm.artifact.writing import Packed, Written, pack_model, write_artifact
from jepa_lm.data.corpora import ShardCorpus
from jepa_lm.data.rows import GeneratedRows, RowCorpus
from jepa_lm.data.token_data import TokenData
from jepa_lm.evaluation.sampling import start_of_text
from jepa_lm.evaluation.scoring import Scorer
from jepa_lm.evaluation.temperature import search_temperature
from jepa_lm.loggers.recording import RunLoggers, recording_job
from jepa_lm.loggers.settings import shared_settings
from jepa_lm.model import LanguageModel
from jepa_lm.model.checkpoint import portable, read_checkpoint, shipped_weights
from jepa_lm.quantization.calibration import OWN, calibrate, own_text, training_text
from jepa_lm.utils.config import check_node, check_schema, check_type, resolve
from jepa_lm.utils.console import showing
from jepa_lm.utils.files import staging, sweep_up, write_bytes, write_json, write_text
from jepa_lm.utils.locks import only_writer
from jepa_lm.utils.output import say
from jepa_lm.utils.paths import CONF, TOKENIZER_FILE
from jepa_lm.utils.provenance import git_state, versions
from jepa_lm.utils.schema import SEARCH, ExportConfig, Temperature
from jepa_lm.utils.trusted import Trust, find_class

TRIAL_TOKENS = 16_384
"""Number of training tokens on which ways to fit the cap are tried."""


def export(cfg: DictConfig) -> float:
    """Write artifact.<ext>, export.json, submission.json and a model card; score the file in a fresh process.

    Returns:
        Bytes of artifact and code.

    Raises:
        UserError: a bad setting, checkpoint or policy, or a file that a fresh process cannot load; an earlier
            export in the folder is unchanged.
        OverCapError: artifact and code exceed the cap; the files are written anyway.
        LossError: the file scores too much worse than the checkpoint; the files are written anyway.
        UserError: a failed push; the files are written.
    """
    config = resolve(cfg)
    check_schema(config, ExportConfig)
    check_settings(config["export"])
    check_node("logger", config["logger"])
    if config["push"] is not None:
        target("push", config["push"])
    folder, trust = Path(config["paths"]["run_dir"]), Trust.of(config)
    if config["export"]["code"] != FULL:
        check_code_folder(folder, config["export"]["code"])
    with only_writer(folder, "hydra.run.dir"):
        sweep_up(folder)
        with held_model_file(config["ckpt_path"], None, folder, trust) as held:
            work = _Export(config, held, trust)
            of_training = {"run": work.run_config, "shared": shared_settings(work.run_config)}
            with recording_job(config, "export", **of_training) as records:
                total = work.run(records)
        if config["push"] is not None:
            say(f"pushed to {push(str(folder), 'push', config['push'])}")
        return total


class _Export:
    """One export, with the state that its steps share."""

    def __init__(self, config: dict[str, Any], held: HeldFile, trust: Trust) -> None:
        self.config, self.settings = config, config["export"]
        self.held, self.trust = held, trust
        self.checkpoint = read_checkpoint(held.file, trust)
        self.run_config = self.checkpoint["hyper_parameters"]["config"]
        self.loaded = model_of_checkpoint(held.path, self.checkpoint, trust)
        self.weights = weights_of(self.loaded)
        self.model: LanguageModel = self.loaded.model
        self.device = pick_device(config["device"])
        asked = config["quantization"]
        self.quantization = quantization(asked, self.run_config["quantization"])
        self.policy = policy(self.quantization, asked, held.path, trust)
        self.formats = self.policy.assign(self.model)
        given = self.settings["stride"]
        self.stride = self.loaded.stride if given is None else given
        check_stride(self.settings["protocols"], self.stride, self.run_config["data"]["seq_len"])
        self.asked_temperature = config["temperature"]
        if self.asked_temperature is None:
            self.asked_temperature = self.run_config["temperature"]
        check_type("temperature", self.asked_temperature, Temperature)
        self.folder = Path(config["paths"]["run_dir"])

    @cached_property
    def data(self) -> TokenData:
        """The run's data, loaded on first use."""
        return load_data(self.loaded, {"cache_dir": self.config["paths"]["cache"]})

    @cached_property
    def place(self) -> str:
        """Where the tokenizer goes; by default beside the artifact if it is published with the shards."""
        asked: str | None = self.settings["tokenizer"]
        corpus = find_class("data", self.run_config["data"]["corpus"]["_target_"], self.trust)
        if asked is not None or not isinstance(corpus, type):
            return asked or INSIDE
        if issubclass(corpus, GeneratedRows):  # the data name their own symbols
            return NONE
        published = issubclass(corpus, ShardCorpus) and not issubclass(corpus, RowCorpus)
        return BESIDE if published else INSIDE

    @cached_property
    def tokenizer(self) -> bytes | None:
        """The serialized tokenizer; None if it is not stored, or needs nothing."""
        if self.place == NONE:
            return None
        return serialized(self.loaded.own_tokenizer() or self.data.tokenizer)

    def run(self, records: RunLoggers) -> float:
        """Run all steps; return bytes of artifact and code."""
        packed, gptq = self._packed()
        temperature = self._temperature(packed)
        meta = self._meta(temperature["temperature"])
        with staging(self.folder) as staged:
            written = write_artifact(
                staged,
                packed,
                meta,
                streams=self.settings["streams"],
                codecs=self.settings["codecs"],
                tokenizer=self.tokenizer if self.place == INSIDE else None,
            )
            if self.place == BESIDE and self.tokenizer is not None:
                write_bytes(staged / TOKENIZER_FILE, self.tokenizer)
            account = self._account(written, staged) | {
                "weights": shipped_weights(self.checkpoint),
                "weights_sha256": self.weights,
                "steps": meta["steps"],
                "temperature": temperature,
                "gptq": gptq,
                **self._round_trip(written),
                "git": meta["git"],
                "versions": meta["versions"],
            }
            if not account["fits"]:
                account["ways_under"] = self._ways(account, meta)
            self._write(account, staged)
            publish(staged, self.folder)
        records.summary(account, [self.folder / ACCOUNT])
        records.artifact("artifact", [Path(account["artifact"]), self.folder / CARD])
        with showing("the account"):
            print_account(account, self.folder)
        judge(account, self.settings["max_bpb_loss"])
        return float(account["total"])

    def _packed(self) -> tuple[Packed, dict[str, Any] | None]:
        """Return the quantized model, and GPTQ's report if the policy uses it."""
        packed = pack_model(self.model, self.formats)
        plan = self.policy.gptq
        if plan is None:
            return packed, None
        self.model.to(self.device)
        shape = {"tokens": plan.tokens, "seq_len": self.data.seq_len}
        if plan.text == OWN:
            start = start_of_text(self.data.tokenizer)
            text = own_text(self.model, start, seed=plan.seed, **shape)
        else:
            text = training_text(self.data.streams["train"], device=self.device, **shape)
        found, report = calibrate(self.model, self.formats, text, plan)
        self.model.cpu()
        return replace(packed, parts={**packed.parts, **found}), report

    def _temperature(self, packed: Packed) -> dict[str, Any]:
        """Return `temperature`, and how it was found if it was searched for."""
        if self.asked_temperature != SEARCH:
            return {"temperature": float(self.asked_temperature)}
        scorer, train = self._scorer(packed.restored(self.model)), self.data.split("train")
        return search_temperature(scorer, train.stream, seq_len=train.seq_len, rows=train.rows)

    def _scorer(self, model: LanguageModel) -> Scorer:
        """Return a scorer of training text."""
        counter = self.data.split("train").byte_counter()
        return Scorer.of(model, counter, self.device, self.loaded.precision)

    def _meta(self, temperature: float) -> dict[str, Any]:
        """Return the metadata that the file holds in addition to the weights."""
        run = self.run_config
        return {
            "model": portable(run["model"]),
            "data": {key: value for key, value in run["data"].items() if key != "cache_dir"},
            "temperature": temperature,
            "eval": run["eval"],
            "precision": run["trainer"]["precision"],
            "tokenizer": self.checkpoint["tokenizer"],
            "seed": run["seed"],
            "steps": self.checkpoint["global_step"],
            "git": git_state(),
            "versions": versions(),
        }

    def _account(self, written: Written, staged: Path) -> dict[str, Any]:
        """Return sizes, all of files on disk, and the error of the predicted size."""
        counted, cap = self.settings["code"], self.settings["cap_bytes"]
        code = counted_bytes(counted, staged, self.run_config["model"])
        total = written.bytes + code
        predicted, announced = (
            predict(self.model, self.formats, self.settings["codecs"], trained=trained)["bytes"]
            for trained in (True, False)
        )
        return {
            "artifact": str(self.folder / written.path.name),
            DIGEST_KEY: written.sha256,
            "source": str(self.held.path),
            "run": shared_settings(self.run_config),
            "parameters": sum(row["values"] for row in written.tensors),
            "bytes": written.bytes,
            "tokenizer": self.place,
            "tokenizer_bytes": written.tokenizer_bytes,
            "code": counted,
            "code_bytes": code,
            "total": total,
            "cap": cap,
            "headroom": cap - total,
            "fits": total <= cap,
            "predicted": {
                "bytes": predicted,
                "off": predicted / (written.bytes - written.tokenizer_bytes) - 1,
                "before_training": announced,
            },
            "codecs": written.codecs,
            "compressors": written.compressors,
            "tensors": written.tensors,
        }

    def _round_trip(self, written: Written) -> dict[str, Any]:
        settings = self.settings
        found = round_trip(
            written.path,
            self.held,
            self.weights,
            protocols=settings["protocols"],
            stride=self.stride,
            max_tokens=settings["max_tokens"],
            device=self.config["device"],
            cache=self.config["paths"]["cache"],
            trust=self.trust,
        )
        return {**found, "max_tokens": settings["max_tokens"]}

    def _ways(self, account: dict[str, Any], meta: dict[str, Any]) -> list[dict[str, Any]]:
        """Return measured ways to fit the cap."""
        attempt = Attempt(
            quantization=self.quantization,
            cap=account["cap"],
            bytes=account["bytes"],
            tokenizer_bytes=account["tokenizer_bytes"],
            codec=min(account["compressors"], key=account["compressors"].__getitem__),
            streams=self.settings["streams"],
            meta=meta,
            code={**whole_bytes(), account["code"]: account["code_bytes"]},
            counted=account["code"],
        )
        windows = self.data.split("train").windows(TRIAL_TOKENS + 1)
        return ways_under(attempt, self._scorer(self.model), windows, CONF / "quantization")

    def _write(self, account: dict[str, Any], staged: Path) -> None:
        records = run_records(self.held.path)
        said = submission(self.config["submission"], account, self.run_config, records)
        write_json(staged / ACCOUNT, account)
        write_json(staged / SUBMISSION, said)
        write_json(staged / RUN_CONFIG, self.run_config)
        write_text(staged / CARD, model_card(said, account, self.run_config, records))
