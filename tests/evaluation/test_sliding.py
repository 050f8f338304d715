"""Sliding windows score every target once, with enough context, for any batch size or process count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_lm.data.shards import ShardWriter
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.windows import SlidingWindows
from jepa_lm.utils.errors import UserError

CPU = torch.device("cpu")


class Counting:
    """A stream whose tokens are their own positions."""

    def __init__(self, total: int) -> None:
        self.total = total

    def read(self, start: int, out: np.ndarray) -> None:
        out[:] = np.arange(start, start + len(out))


def problems(windows, *, total: int, seq_len: int, stride: int) -> list[str]:
    """Return what is wrong with the windows: targets missed or scored twice, context too short or torn."""
    found, scored = [], []
    for i in range(len(windows)):
        inputs, targets = windows[i]["inputs"], windows[i]["targets"]
        if inputs.shape[1] > seq_len:
            found.append("a window is too long")
        for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
            if row != list(range(row[0], row[0] + len(row))):
                found.append("a window is torn")
            if wanted != list(range(row[-1] + 2 - len(wanted), row[-1] + 2)):
                found.append("targets are not the last ones of their window")
            for target in wanted:
                context = target - row[0]
                if context < min(target, seq_len - stride + 1):
                    found.append(f"target {target} has {context} tokens of context")
            scored += wanted
    if scored != list(range(1, total)):
        found.append("not every target once")
    return found


SHAPES = dict(
    total=st.integers(2, 150),
    seq_len=st.integers(1, 40),
    stride=st.integers(1, 40),
    rows=st.integers(1, 7),
)


@given(**SHAPES)
@settings(max_examples=300, deadline=None)
def test_every_target_is_scored_once_with_enough_context(total, seq_len, stride, rows):
    stride = min(stride, seq_len)
    windows = SlidingWindows(Counting(total), seq_len=seq_len, stride=stride, rows=rows, device=CPU)
    assert problems(windows, total=total, seq_len=seq_len, stride=stride) == []


@pytest.mark.parametrize("bug", ["tail dropped", "tail scored twice", "first window scored late"])
def test_the_published_defects_would_be_seen(bug):
    """#903 dropped the tail; #832 and #1243 scored parts of it twice."""
    sizes = dict(seq_len=16, stride=5)
    windows = SlidingWindows(Counting(100), rows=3, device=CPU, **sizes)
    assert windows.left > 0
    if bug == "tail dropped":
        windows.left = 0
    elif bug == "tail scored twice":
        windows.left = 5
    else:
        cut = windows._cut
        windows._cut = lambda w, scored: cut(w, min(scored, 5))
    assert problems(windows, total=100, **sizes)


@pytest.mark.parametrize("stride", [0, 17, -1])
def test_a_stride_that_cannot_be_is_named(stride):
    with pytest.raises(UserError, match=rf"eval\.stride={stride}: 1 to the window length 16"):
        SlidingWindows(Counting(100), seq_len=16, stride=stride, rows=1, device=CPU)


def test_tokens_stay_integers_and_are_those_of_the_shard(tmp_path):
    with ShardWriter(tmp_path / "s.bin") as shard:
        shard.write([65_535, 0, 7, 9])
    windows = SlidingWindows(
        TokenStream([tmp_path / "s.bin"]), seq_len=2, stride=1, rows=1, device=CPU
    )
    assert not windows.tokens.is_floating_point()
    assert windows[0]["inputs"].tolist() == [[65_535, 0]]
    assert windows[0]["inputs"].dtype == torch.int64
