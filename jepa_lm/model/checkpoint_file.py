"""Read a checkpoint file into tensors and plain containers, within limits and without running code.

PyTorch's `weights_only` runs no code, but it allocates whatever the file asks for (a byte array of 8 GB,
compressed entries). So the archive is checked first: its entries must be uncompressed, and its list of
contents (a pickle) may use only the few opcodes and names that `torch.save` writes for our checkpoints.
"""

from __future__ import annotations

import pickletools
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa_lm.utils.errors import UserError
from jepa_lm.utils.former_names import modern_states
from jepa_lm.utils.nested import at
from jepa_lm.utils.paths import program
from jepa_lm.utils.schema import Limits
from jepa_lm.utils.trusted import plain

BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,  # NotImplementedError as well
    ValueError,  # UnicodeDecodeError as well
    OverflowError,
)
"""Exceptions that reading a damaged archive may raise."""
CONTENTS = "data.pkl"
MOST_CONTENTS = 64 << 20
MOST_ENTRIES = 300_000
MOST_VALUES = 4_000_000
NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch.serialization _get_layout",
    *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Byte", "Char")),
    *(f"torch {kind}Storage" for kind in ("Short", "Int", "Long", "Bool", "Untyped")),
}
"""Names that the list of contents may use."""
FORBIDDEN = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "state_dict": dict,
    "global_step": int,
    "hyper_parameters": dict,
    "tokenizer": str,
    "shipped": str,
    "averages": dict,
}
"""Keys and types that every checkpoint of train.py must have."""
PARTS: dict[tuple[str, ...], type | tuple[type, ...]] = {
    ("model",): dict,
    ("data",): dict,
    ("jepa",): dict,
    ("quantization",): dict,
    ("trainer",): dict,
    ("trainer", "precision"): str,
    ("eval", "stride"): int,
    ("data", "seq_len"): int,
    ("data", "val_batch_tokens"): int,
    ("seed",): int,
    ("task_name",): str,
    ("tags",): list,
}
"""Config keys and types that evaluation and export read."""


def damage(path: Path) -> str | None:
    """Return what the checksums say is wrong with a checkpoint; None if it is intact.

    PyTorch writes a checksum for each tensor but does not verify it when reading.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(archive, path.stat().st_size)
            entry = archive.testzip()
    except UserError as error:
        return str(error)
    except BROKEN_ZIP as error:
        return str(error) or type(error).__name__
    return None if entry is None else f"wrong checksum of {entry}"


def load(path: Path, limits: Limits, *, mapped: bool = False) -> dict[str, Any]:
    """Return everything that a checkpoint holds; its config is a `plain` copy.

    Args:
        mapped: memory-map the tensors instead of reading them.

    Raises:
        UserError: the file is damaged, too large, not a checkpoint of this program, or holds more than data.
    """
    try:
        size = path.stat().st_size
        if size > limits.bytes:
            raise UserError(f"holds {size} bytes; limits.bytes={limits.bytes}")
        with zipfile.ZipFile(path) as archive:
            _check_entries(archive, size)
            _check_contents(archive)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        _check_tensors(found, limits)
        return _checked(found, str(path))
    except UserError as error:
        raise UserError(_refusal(path, str(error))) from error
    except Exception as error:  # any failure in here is the fault of the file
        reason = str(error).split("\n", 1)[0][:160]
        raise UserError(_refusal(path, f"{type(error).__name__}: {reason}")) from error


def _refusal(path: Path, reason: str) -> str:
    return f"ckpt_path={path}: damaged, or not a checkpoint of {program('train')} ({reason})"


def step_of(path: Path) -> int | None:
    """Return the optimizer step that a checkpoint was saved after; None if it cannot be read."""
    try:
        # No size limit: a mapped file takes no memory.
        return int(load(path, replace(Limits(), bytes=sys.maxsize), mapped=True)["global_step"])
    except UserError:
        return None


def _check_entries(archive: zipfile.ZipFile, size: int) -> None:
    """Check that entries are uncompressed, have unique names, and are not larger than the file."""
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise UserError(f"{len(entries)} entries, at most {MOST_ENTRIES}")
    if len({entry.filename for entry in entries}) < len(entries):
        raise UserError("two entries have the same name")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UserError(f"{entry.filename[:80]} is compressed, which torch.save never does")
    if (total := sum(entry.file_size for entry in entries)) > size:
        raise UserError(f"its entries claim {total} bytes, the file has {size}")


def _check_contents(archive: zipfile.ZipFile) -> None:
    """Check that the list of contents uses only the opcodes and names of our own checkpoints."""
    lists = [e for e in archive.infolist() if e.filename.rpartition("/")[2] == CONTENTS]
    if len(lists) != 1:
        raise UserError(f"{len(lists)} entries named {CONTENTS}, not one")
    if lists[0].file_size > MOST_CONTENTS:
        raise UserError(f"{CONTENTS} has {lists[0].file_size} bytes, at most {MOST_CONTENTS}")
    for code, argument, _ in pickletools.genops(archive.read(lists[0])):
        if code.name in FORBIDDEN or (code.name == "GLOBAL" and argument not in NAMES):
            raise UserError(
                "it holds more than tensors and plain values "
                f"({str(argument).replace(' ', '.')[:80] if argument else code.name})"
            )


def _check_tensors(found: Any, limits: Limits) -> None:
    """Check that all tensors are dense, on the CPU, within the limits and backed by enough storage."""
    taken, tensors, values = {}, limits.tensors, MOST_VALUES
    waiting = [found]
    while waiting:
        node = waiting.pop()
        values -= 1
        if values < 0:
            raise UserError(f"more than {MOST_VALUES} values besides its tensors")
        if isinstance(node, Tensor):
            tensors -= 1
            if tensors < 0:
                raise UserError(f"more tensors than limits.tensors={limits.tensors}")
            _check_tensor(node, limits)
            storage = node.untyped_storage()
            taken[storage.data_ptr(), storage.nbytes()] = storage.nbytes()
        elif isinstance(node, Mapping):
            waiting += [*node.keys(), *node.values()]
        elif isinstance(node, list | tuple):
            waiting += node
    if (total := sum(taken.values())) > limits.bytes:
        raise UserError(f"tensors of {total} bytes; limits.bytes={limits.bytes}")


def _check_tensor(tensor: Tensor, limits: Limits) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise UserError(f"a tensor that is {tensor.layout} on {tensor.device.type}")
    if tensor.numel() > limits.tensor_values:
        raise UserError(
            f"a tensor of {tensor.numel()} values; limits.tensor_values={limits.tensor_values}"
        )
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise UserError(f"a tensor of shape {tuple(tensor.shape)[:8]} is larger than its storage")


def _checked(found: Any, source: str) -> dict[str, Any]:
    """Return the checkpoint with a plain config, after checking its required keys and types."""
    if not isinstance(found, dict):
        raise UserError(f"it holds a {type(found).__name__}")
    for key, kind in REQUIRED.items():
        if not isinstance(found.get(key), kind):
            raise UserError(f"it has no usable {key!r}; written by another version of jepa_lm?")
    config = plain(found["hyper_parameters"].get("config"), source)
    for where, expected in PARTS.items():
        node = at(config, *where)
        if not isinstance(node, expected) or isinstance(node, bool):
            raise UserError(f"its config has no usable {'.'.join(where)!r}")
    for name, tensor in found["state_dict"].items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"state_dict holds a {type(tensor).__name__} at {str(name)[:80]!r}")
    modern = modern_states(found)
    return {**modern, "hyper_parameters": {**found["hyper_parameters"], "config": config}}
