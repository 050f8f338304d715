"""Configs and archives that would run code, read the environment or fill memory if anything let them."""

from __future__ import annotations

import copy
import io
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from jepa_lm.utils.memory import PeakMemory
from tests.artifact.forging import pack, unpack

SECRET = "told-a-secret"
MANY_KEYS = {f"k{i}": 0 for i in range(200_000)}
HANG, MOST_BYTES = 5, 1 << 30
"""Seconds and additional bytes that reading any file may take at most."""


def forms(made: Path) -> dict[str, Any]:
    """Return hostile values for a part of a config; running one of them creates the file `made`.

    None uses a name that Hydra blocks by itself, such as os.system.
    """
    call = f"${{oc.create:{{_target_:numpy.savetxt,_args_:['{made}',[1]]}}}}"
    foreign = {"_target_": "numpy.savetxt", "fname": str(made), "X": [1]}
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    return {
        "a reference that calls": call,
        "a reference below": {"_target_": "jepa_lm.data.corpora.TextFiles", "path": call},
        "a reference to the environment": "${oc.env:SECRET}",
        "a reference that counts": "${times:9,9}",
        "a foreign function": foreign,
        "one in a list": [foreign],
        "one in a tuple": ({**foreign},),
        "one in a tuple in a list": [({"a": (foreign,)},)],
        "a function of this package": {
            "_target_": "jepa_lm.utils.files.write_text",
            "path": str(made),
            "text": "x",
        },
        "a class from elsewhere": {"_target_": "jepa_lm.data.tokenizers.Path"},
        "a class of another part": {"_target_": "jepa_lm.data.stream.TokenStream", "paths": []},
        "a module to import": {"_target_": "tests.artifact.owned.Owned"},
        "something partial": {**foreign, "_partial_": True},
        "arguments by place": {"_target_": "numpy.savetxt", "_args_": [str(made), [1]]},
        "a target that is a list": {"_target_": ["numpy.savetxt"]},
        "a target that is a number": {"_target_": 5},
        "many keys": MANY_KEYS,
        "many levels": deep,
        "a long text": "x" * (1 << 23),
        "a long number": 10**4000,
    }


ROUTES = ("eval artifact", "look at artifact", "eval checkpoint", "export checkpoint", "resume")
PLACES = [("model", "bigram"), ("data", "corpus"), ("quantization", "rules")]
"""Parts of a config from which objects are built."""


def artifact_with(file: Path, folder: Path, place: tuple[str, ...], value: Any) -> Path:
    """Write the artifact with one value of its config replaced, and valid checksums."""
    tensors, meta = unpack(file)
    return pack(folder, tensors, _with(meta, place, value))


def checkpoint_with(file: Path, folder: Path, place: tuple[str, ...], value: Any) -> Path:
    """Write the checkpoint with one value of its config replaced."""
    found = torch.load(file, weights_only=True)
    config = found["hyper_parameters"]["config"]
    found["hyper_parameters"]["config"] = _with(config, place, value)
    path = folder / "hostile.ckpt"
    torch.save(found, path)
    return path


def _with(config: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    node = changed
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return changed


def bombs(file: Path) -> dict[str, Callable[[], bytes]]:
    """Return archives that claim little memory and take much, or that run a pickle."""
    found = torch.load(file, weights_only=True)
    whole = io.BytesIO()
    torch.save(found, whole)
    source = zipfile.ZipFile(whole)
    (contents,) = (n for n in source.namelist() if n.endswith("/data.pkl"))

    def archive(
        pickled: bytes | None = None, kind: int = zipfile.ZIP_STORED, **more: bytes
    ) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", kind) as target:
            for entry in source.infolist():
                ours = pickled is not None and entry.filename == contents
                target.writestr(entry.filename, pickled if ours else source.read(entry.filename))
            for name, data in more.items():
                target.writestr(f"archive/{name}", data)
        return out.getvalue()

    def changed(*place: str, value: Any) -> bytes:
        out = io.BytesIO()
        whole = copy.deepcopy(found)
        whole["hyper_parameters"]["config"] = _with(
            whole["hyper_parameters"]["config"], place, value
        )
        torch.save(whole, out)
        return out.getvalue()

    def stretched() -> bytes:
        out = io.BytesIO()
        state = dict(found["state_dict"])
        name = next(iter(state))
        state[name] = torch.zeros(1).expand(1 << 34)
        torch.save({**found, "state_dict": state}, out)
        return out.getvalue()

    laughs = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([i + 1]) + b"h" + bytes([i]) + b"ah" + bytes([i]) + b"a" for i in range(60)
    )
    zeros = bytes(20 << 20)
    return {
        "a byte array": lambda: archive(
            b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x02\x85R."
        ),
        "a function": lambda: archive(b"\x80\x02cos\ngetcwd\n)R."),
        "a name of protocol 4": lambda: archive(b"\x80\x04\x8c\x02os\x8c\x06getcwd\x93)R."),
        "lists of lists of lists": lambda: archive(laughs + b"."),
        "levels": lambda: archive(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        "a text that is not there": lambda: archive(b"\x80\x04\x8d" + b"\xff" * 6 + b"\0\0."),
        "no contents": lambda: archive(b"."),
        "a deflated entry": lambda: archive(None, zipfile.ZIP_DEFLATED, bomb=zeros),
        "deflated contents": lambda: archive(
            b"\x80\x02X" + len(zeros).to_bytes(4, "little") + zeros + b".", zipfile.ZIP_DEFLATED
        ),
        "a million layers": lambda: changed("model", "backbone", "layers", value=10**6),
        "a wide model": lambda: changed("model", "dim", value=10**7),
        "a large table": lambda: changed("model", "bigram", "buckets", value=10**9),
        "a long sequence": lambda: changed("data", "seq_len", value=10**9),
        "a stretched tensor": stretched,
    }


@contextmanager
def bounded() -> Iterator[None]:
    """Fail if the block takes more than a few seconds or more than a gigabyte of additional memory.

    These are safety limits, not speed targets: refusing a file takes about a hundredth of either.
    """

    def too_long(signum: int, frame: Any) -> None:
        raise AssertionError(f"took over {HANG} seconds")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(HANG)
    memory = PeakMemory()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    peak = memory.peak(torch.device("cpu"))
    assert peak is None or peak < MOST_BYTES


def clear(text: str, canary: Path) -> bool:
    """Return whether the message is one short line without the secret, and nothing was run."""
    line = text.strip()
    return "\n" not in line and len(line) < 700 and SECRET not in line and not canary.exists()
