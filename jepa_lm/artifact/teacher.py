"""Loads the teacher that a training names, from a checkpoint or an artifact."""

from __future__ import annotations

import hashlib

import torch

from jepa_lm.artifact.loaded_model import HeldFile, find_model_file, read_model
from jepa_lm.objective.teacher import OpenTeacher, Teacher
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.finding import as_path, holds_artifact
from jepa_lm.utils.trusted import Trust

KEY = "jepa.target.path"


def opener(trust: Trust) -> OpenTeacher:
    """Return what loads the teacher that a setting names: a checkpoint, an artifact or a run folder."""

    def open_teacher(value: str) -> Teacher:
        is_artifact = holds_artifact(as_path(KEY, value))
        ckpt, artifact = (None, value) if is_artifact else (value, None)
        try:
            key, path = find_model_file(ckpt, artifact, trust)
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            with torch.random.fork_rng(devices=[]):  # a teacher changes no random number of the run
                loaded = read_model(HeldFile(key, path, path), trust)
        except (UserError, OSError) as error:
            # What is common to all commands names its own setting.
            said = str(error).removeprefix(f"ckpt_path={value}: ")
            raise UserError(f"{KEY}={value}: {said}") from error
        return Teacher(loaded.model, str(path), sha256, loaded.tokenizer, loaded.temperature)

    return open_teacher
