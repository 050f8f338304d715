"""Warnings: which process of several says what all of them find."""

from __future__ import annotations

import pytest

from jepa_lm.utils.errors import warn_once_per_machine


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "RANK": "8"}, True),
        ({"LOCAL_RANK": "3"}, False),
        ({"SLURM_LOCALID": "0", "SLURM_PROCID": "4"}, True),
        ({"SLURM_LOCALID": "1"}, False),
        ({"SLURM_LOCALID": "1", "LOCAL_RANK": "0"}, True),  # torchrun within one task of a job
    ],
)
def test_what_a_machine_lacks_is_told_by_its_first_rank(monkeypatch, capsys, place, said):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    warn_once_per_machine("no\ncompiler")
    assert capsys.readouterr().err == ("warning: no compiler\n" if said else "")
