"""Checkpoints that a crash or a disk has damaged."""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest
import torch

from jepa_lm.model.checkpoint import damage, find_checkpoint, newest_whole, read_checkpoint
from jepa_lm.run import train
from jepa_lm.utils.errors import UserError
from tests.comparing import leaves, same


def flipped(path) -> None:
    """Flip one bit in the middle of the file, where tensors lie."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def emptied(path) -> None:
    path.write_bytes(b"")


@pytest.fixture
def copy(small, trained, tmp_path):
    """A copy of the session's run with its checkpoints of steps 3 and 6, free to be damaged."""
    shutil.copytree(trained.folder, tmp_path / "copy")
    folder = tmp_path / "copy" / "checkpoints"
    (folder / "last.ckpt").unlink()
    os.link(folder / "step-6.ckpt", folder / "last.ckpt")
    return tmp_path / "copy"


@pytest.mark.parametrize("harm", [flipped, cut, emptied])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(small, copy, tmp_path, capsys, harm):
    newest = copy / "checkpoints" / "step-6.ckpt"
    before = read_checkpoint(newest)["state_dict"]
    harm(newest)
    got = train(small(f"ckpt_path={copy}", run_dir=tmp_path / "rest"))
    said = capsys.readouterr().err
    assert "warning:" in said
    assert "damaged" in said
    assert "step-3.ckpt" in said  # training resumes from here
    after = read_checkpoint(tmp_path / "rest" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert got == json.loads((copy / "summary.json").read_text())["val"]["bpb"]


def test_a_wrong_bit_would_load_without_the_checksums(copy):
    """Planted bug: PyTorch itself reads damaged tensors silently."""
    path = copy / "checkpoints" / "step-6.ckpt"
    before = leaves("", torch.load(path, weights_only=True))
    flipped(path)
    after = leaves("", torch.load(path, weights_only=True))
    assert damage(path) is not None
    assert [key for key in before if not same(before[key], after[key])]


def test_nothing_whole_is_an_error_and_a_named_file_is_not_replaced(copy):
    flipped(copy / "checkpoints" / "step-6.ckpt")
    with pytest.raises(UserError, match=r"damaged.*; .*step-3\.ckpt is whole"):
        find_checkpoint(str(copy / "checkpoints" / "step-6.ckpt"))
    cut(copy / "checkpoints" / "step-3.ckpt")
    with pytest.raises(UserError, match="every checkpoint there is damaged"):
        find_checkpoint(str(copy))


@pytest.mark.parametrize("seed", range(4))
def test_any_wrong_byte_is_damage_or_harmless(copy, seed):
    """Headers included: never a traceback, and never other values."""
    path = copy / "checkpoints" / "step-6.ckpt"
    (copy / "checkpoints" / "step-3.ckpt").unlink()
    whole, draw = path.read_bytes(), random.Random(seed)
    before = read_checkpoint(path)["state_dict"]
    for _ in range(25):
        data = bytearray(whole)
        near_the_end = draw.random() < 0.5  # where the archive's directory lies
        at = (
            draw.randrange(len(data) - 8000, len(data))
            if near_the_end
            else draw.randrange(len(data))
        )
        data[at] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            found = newest_whole(copy / "checkpoints")
        except UserError as error:
            if "every checkpoint there is damaged" not in str(error):
                raise
            continue
        after = read_checkpoint(found)["state_dict"]
        assert all(torch.equal(before[n], after[n]) for n in before)
