"""export(cfg): a checkpoint's model, quantized and compressed, with its size account and its score."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from jepa_lm.artifact.card import model_card, run_records, submission
from jepa_lm.artifact.codecs import COMPRESSORS
from jepa_lm.artifact.layout import check_streams
from jepa_lm.artifact.prediction import predict
from jepa_lm.artifact.remedies import Attempt, ways_under
from jepa_lm.artifact.report import print_account, ways_in_words
from jepa_lm.artifact.round_trip import check_protocols, check_stride, round_trip
from jepa_lm.artifact.size import (
    FULL,
    MINIFIED,
    check_code,
    code_bytes,
    minified_bytes,
    write_minified,
)
from jepa_lm.artifact.writing import Packed, Written, pack_model, write_artifact
from jepa_lm.checkpoint import find_checkpoint, portable, read_checkpoint, shipped_weights
from jepa_lm.cli import CONF
from jepa_lm.config import build, check_node, check_schema, resolve
from jepa_lm.data.token_data import TokenData
from jepa_lm.errors import LossError, OverCapError, UserError
from jepa_lm.evaluation.scoring import Scorer
from jepa_lm.evaluation.subject import checkpoint_subject, load_data, pick_device
from jepa_lm.evaluation.temperature import SEARCH, check_temperature, search_temperature
from jepa_lm.evaluation.windows import StandardWindows
from jepa_lm.files import write_json
from jepa_lm.loggers.recording import Records, recording_job
from jepa_lm.loggers.settings import shared_settings
from jepa_lm.model import LanguageModel
from jepa_lm.quantization.calibration import OWN, calibrate, own_text, training_text
from jepa_lm.quantization.policy import Policy
from jepa_lm.records import git_state, versions
from jepa_lm.sampling import start_of_text
from jepa_lm.schema import ExportConfig
from jepa_lm.trusted import Trust, build_part

TRIAL_TOKENS = 16_384
"""Of training text, on which ways under the cap are tried."""


def export(cfg: DictConfig) -> float:
    """Write artifact.<ext>, export.json, submission.json and a model card; score the file in a fresh process.

    Returns:
        Bytes of artifact and code.

    Raises:
        UserError: a bad setting, checkpoint or policy, or a file that a fresh process cannot load.
        OverCapError: artifact and code do not fit the cap; the files are written all the same.
        LossError: the file scores worse than the checkpoint by too much; the files are written.
    """
    config = resolve(cfg)
    check_schema(config, ExportConfig)
    settings = config["export"]
    _check(settings)
    check_node("logger", config["logger"])
    work = _Export(config, settings)
    of_training = {"run": work.run_config, "shared": shared_settings(work.run_config)}
    with recording_job(config, "export", **of_training) as records:
        return work.run(records)


def _check(settings: dict[str, Any]) -> None:
    check_code(settings["code"])
    check_streams(settings["streams"])
    check_protocols(settings["protocols"])
    for codec in settings["codecs"]:
        if codec not in COMPRESSORS:
            raise UserError(f"export.codecs={codec}: one of {', '.join(COMPRESSORS)}")
    if not settings["codecs"]:
        raise UserError(f"export.codecs=[]: at least one of {', '.join(COMPRESSORS)}")
    if settings["max_tokens"] is not None and settings["max_tokens"] < 2:
        raise UserError(f"export.max_tokens={settings['max_tokens']}: at least 2, or null for all")


class _Export:
    """One export: what several of its steps need."""

    def __init__(self, config: dict[str, Any], settings: dict[str, Any]) -> None:
        self.config, self.settings = config, settings
        self.trust = Trust.of(config)
        self.path = find_checkpoint(config["ckpt_path"], self.trust)
        self.checkpoint = read_checkpoint(self.path, self.trust)
        self.run_config = self.checkpoint["hyper_parameters"]["config"]
        self.subject = checkpoint_subject(self.path, self.checkpoint, self.trust)
        self.model: LanguageModel = self.subject.model
        self.device = pick_device(config["device"])
        self.quantization = _quantization(config["quantization"], self.run_config["quantization"])
        self.policy = _policy(self.quantization, config["quantization"], self.path, self.trust)
        self.formats = self.policy.assign(self.model)
        self.stride = settings["stride"] or self.subject.stride
        check_stride(settings["protocols"], self.stride, self.run_config["data"]["seq_len"])
        given = config["temperature"]
        self.asked_temperature = self.run_config["temperature"] if given is None else given
        check_temperature("temperature", self.asked_temperature)
        self.folder = Path(config["paths"]["run_dir"])

    @cached_property
    def data(self) -> TokenData:
        """The data of the run; read only by what asks for it."""
        return load_data(self.subject, {"cache_dir": self.config["paths"]["cache"]})

    def run(self, records: Records) -> float:
        """All steps; returns bytes of artifact and code."""
        packed, gptq = self._packed()
        temperature = self._temperature(packed)
        meta = self._meta(temperature["temperature"])
        self.folder.mkdir(parents=True, exist_ok=True)
        written = write_artifact(
            self.folder,
            packed,
            meta,
            streams=self.settings["streams"],
            codecs=self.settings["codecs"],
        )
        account = self._account(written) | {
            "weights": shipped_weights(self.checkpoint),
            "steps": meta["steps"],
            "temperature": temperature,
            "gptq": gptq,
            **self._round_trip(written),
            "git": meta["git"],
            "versions": meta["versions"],
        }
        if not account["fits"]:
            account["ways_under"] = self._ways(account, meta)
        self._write(account)
        records.summary(account, [self.folder / "export.json"])
        records.artifact("artifact", [written.path, self.folder / "model_card.md"])
        print_account(account, self.folder)
        self._judge(account)
        return float(account["total"])

    def _packed(self) -> tuple[Packed, dict[str, Any] | None]:
        """The model as stored, and the report of GPTQ where the policy asks for it."""
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
        """`temperature`, and how it was found when it was searched."""
        if self.asked_temperature != SEARCH:
            return {"temperature": float(self.asked_temperature)}
        scorer, data = self._scorer(packed.restored(self.model)), self.data
        train = data.streams["train"]
        return search_temperature(scorer, train, seq_len=data.seq_len, rows=data.val_rows)

    def _scorer(self, model: LanguageModel) -> Scorer:
        return Scorer.of(model, self.data.tokenizer, self.device, self.subject.precision)

    def _meta(self, temperature: float) -> dict[str, Any]:
        """What travels in the file beside the weights."""
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

    def _account(self, written: Written) -> dict[str, Any]:
        """Sizes, all of files on disk, and how far off the prediction was."""
        counted, cap = self.settings["code"], self.settings["cap_bytes"]
        code = code_bytes(write_minified(self.folder) if counted == MINIFIED else None)
        total = written.bytes + code
        predicted = predict(self.model, self.formats, self.settings["codecs"])["bytes"]
        return {
            "artifact": str(written.path),
            "source": str(self.path),
            "run": shared_settings(self.run_config),
            "parameters": sum(row["values"] for row in written.tensors),
            "bytes": written.bytes,
            "code": counted,
            "code_bytes": code,
            "total": total,
            "cap": cap,
            "headroom": cap - total,
            "fits": total <= cap,
            "predicted": {"bytes": predicted, "off": predicted / written.bytes - 1},
            "codecs": written.codecs,
            "compressors": written.compressors,
            "tensors": written.tensors,
        }

    def _round_trip(self, written: Written) -> dict[str, Any]:
        settings = self.settings
        found = round_trip(
            written.path,
            self.path,
            protocols=settings["protocols"],
            stride=self.stride,
            max_tokens=settings["max_tokens"],
            device=self.config["device"],
            cache=self.config["paths"]["cache"],
            trust=self.trust,
        )
        return {**found, "max_tokens": settings["max_tokens"]}

    def _ways(self, account: dict[str, Any], meta: dict[str, Any]) -> list[dict[str, Any]]:
        """Measured ways to fit."""
        attempt = Attempt(
            quantization=self.quantization,
            cap=account["cap"],
            bytes=account["bytes"],
            codec=min(account["compressors"], key=account["compressors"].__getitem__),
            streams=self.settings["streams"],
            meta=meta,
            code={FULL: code_bytes(), MINIFIED: minified_bytes()},
            counted=account["code"],
        )
        train, seq_len = self.data.streams["train"], self.data.seq_len
        rows, limit = self.data.val_rows, TRIAL_TOKENS + 1
        windows = StandardWindows(train, seq_len=seq_len, rows=rows, limit=limit)
        return ways_under(attempt, self._scorer(self.model), windows, CONF / "quantization")

    def _write(self, account: dict[str, Any]) -> None:
        records = run_records(self.path)
        said = submission(self.config["submission"], account, self.run_config, records)
        write_json(self.folder / "export.json", account)
        write_json(self.folder / "submission.json", said)
        card = model_card(said, account, self.run_config, records)
        (self.folder / "model_card.md").write_text(card, encoding="utf-8")

    def _judge(self, account: dict[str, Any]) -> None:
        if not account["fits"]:
            raise OverCapError(
                f"export.cap_bytes={account['cap']}: artifact {account['bytes']} + code "
                f"{account['code_bytes']} = {account['total']} bytes, over by {-account['headroom']}; "
                f"{ways_in_words(account['ways_under'])}"
            )
        limit = self.settings["max_bpb_loss"]
        for protocol, scores in account["round_trip"].items():
            if scores["bpb_loss"] > limit:
                raise LossError(
                    f"export.max_bpb_loss={limit:g}: the file scores {scores['artifact']['bpb']:.4f} "
                    f"({protocol}), {scores['bpb_loss']:.4f} above its checkpoint; choose more bits, GPTQ "
                    "(+quantization/gptq=training), or training on stored weights "
                    "(quantization.training.start)"
                )


def _policy(node: dict[str, Any], asked: Any, path: Path, trust: Trust) -> Policy:
    """The policy; what a checkpoint has a part in is built as what comes out of a file is."""
    if asked is not None and "_target_" in asked:
        check_node("quantization", node)
        policy = build("quantization", node)
    else:
        policy = build_part("quantization", node, f"ckpt_path={path}", trust)
    if not isinstance(policy, Policy):
        raise UserError(f"quantization: builds a {type(policy).__name__}, not a Policy")
    return policy


def _quantization(asked: Any, of_run: dict[str, Any]) -> dict[str, Any]:
    """The policy: the run's own unless one is named; without a `_target_` it changes the run's own."""
    if asked is None or "_target_" in asked:
        return asked or of_run
    merged: Any = OmegaConf.to_container(OmegaConf.merge(of_run, asked))
    return merged
