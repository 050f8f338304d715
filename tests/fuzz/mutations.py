"""Changes that any kind of file may suffer, and values that no file should hold."""

from __future__ import annotations

import copy
import random
from typing import Any

from tests.artifact.hostile import SECRET

VARIABLE = "SECRET"
"""An environment variable that holds `SECRET`, which no message may show."""
BAIT = "tests.artifact.owned"
"""A module that is imported only if a file causes it."""

REFERENCES = (
    f"${{oc.env:{VARIABLE}}}", "${times:9,9}", "${", "$(touch OWNED)", "`touch OWNED`", "{0.__class__}",
    "%s%n", "${oc.create:{_target_:numpy.savetxt,_args_:[OWNED,[1]]}}", f"!!python/name:{BAIT}.Owned",
    "???", "=1+1",
)  # fmt: skip
TEXTS = (
    "", " ", "\0", "\n", "a\nb", "\x1b[31mred\x1b[0m", "\u202eltr", "\ud800", "\ufeff", "x" * 5000, "é" * 300,
    "~", "[bold]", "<script>alert(1)</script>", "../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x",
    "CON",
    ".", "..", "a/../../b", "-rf", "1e999", "NaN", "null", "true", *REFERENCES,
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 7, 255, 65_536, 2**31, 2**32 - 1, 2**63, -(2**63), 10**40, 10**400)
FLOATS = (-0.5, 0.0, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"))
CALLS: tuple[dict[str, Any], ...] = (
    {"_target_": "numpy.savetxt", "fname": "OWNED", "X": [1]},
    {"_target_": "numpy.savetxt", "_args_": ["OWNED", [1]], "_partial_": True},
    {"_target_": "jepa_lm.utils.files.write_text", "path": "OWNED", "text": "x"},
    {"_target_": "builtins.eval", "_args_": ["1"]},
    {"_target_": "subprocess.Popen", "args": ["touch", "OWNED"]},
    {"_target_": f"{BAIT}.Owned"},
    {"_target_": "jepa_lm.model.transformer.Transformer"},
    {"_target_": "jepa_lm.model.heads.TiedHead"},
    {"_args_": ["touch OWNED"]},
)
JUNK: tuple[Any, ...] = (
    None, True, False, *NUMBERS, *FLOATS, *TEXTS, [], {}, [[]], [1, 2, 3], {"": None}, *CALLS,
    ["x"] * 3000, {f"k{i}": i for i in range(3000)},
)  # fmt: skip
WORDS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_", "__class__", "x", "")
"""Keys that a file could have and should not."""
assert SECRET not in repr(JUNK)


def junk(rng: random.Random) -> Any:
    """Return a replacement value, sometimes a deeply nested one."""
    if rng.random() < 0.02:
        deep: Any = "x"
        for _ in range(rng.choice([50, 500])):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    return copy.deepcopy(rng.choice(JUNK))


def damaged(node: Any, rng: random.Random, times: int | None = None) -> Any:
    """Return a copy of nested dictionaries and lists with some values changed."""
    made = copy.deepcopy(node)
    for _ in range(times or rng.choice([1, 1, 2, 5])):
        _damage(made, rng)
    return made


def _damage(node: Any, rng: random.Random) -> None:
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85:
            node = node[key]
            continue
        change = rng.randrange(6)
        if change == 0:
            del node[key]
        elif change == 1 and isinstance(node, dict):
            node[rng.choice(WORDS)] = junk(rng)
        elif change == 1:
            node.insert(key, copy.deepcopy(rng.choice(node)))
        elif change == 2 and isinstance(node[key], int):
            node[key] = node[key] * rng.choice([-1, 0, 2, 1000, 10**9]) + rng.choice([0, 1])
        elif change == 3:  # the value of another key
            node[key] = copy.deepcopy(node[rng.choice(keys)])
        else:
            node[key] = junk(rng)
        return


def flipped(data: bytes, rng: random.Random, near: int | None = None) -> bytes:
    """Flip some bits, all among the first `near` bytes if that is given."""
    if not data:
        return data
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        out[rng.randrange(min(len(out), near or len(out)))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Cut off the beginning or the end."""
    at = rng.choice([0, 1, rng.randrange(len(data) + 1), max(0, len(data) - 1)])
    return data[:at] if rng.random() < 0.8 else data[at:]


def spliced(data: bytes, rng: random.Random) -> bytes:
    """Cut twice and put the pieces in another order, perhaps one of them twice."""
    a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    pieces = [data[:a], data[a:b], data[b:]]
    if rng.random() < 0.3:
        pieces.append(rng.choice(pieces))
    rng.shuffle(pieces)
    return b"".join(pieces)
