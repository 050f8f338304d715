"""Loggers: metrics.csv, W&B and TensorBoard; what they get at a run's end; the W&B run of a report."""

from jepa_lm.loggers.metrics_csv import AppendingCSVLogger
from jepa_lm.loggers.recording import Ending, Records, recording, recording_job
from jepa_lm.loggers.report import attach_report
from jepa_lm.loggers.settings import fill_in, shared_settings
from jepa_lm.loggers.tensorboard_run import TensorBoardRun
from jepa_lm.loggers.wandb_run import WandbRun

__all__ = [
    "AppendingCSVLogger",
    "Ending",
    "Records",
    "TensorBoardRun",
    "WandbRun",
    "attach_report",
    "fill_in",
    "recording",
    "recording_job",
    "shared_settings",
]
