"""Several processes prepare the same data at once, and one of them is killed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.conftest import REPO

pytestmark = pytest.mark.slow
WORK = """
import sys
from pathlib import Path
from jepa_lm.data import prepare
from jepa_lm.data.corpora import TextFiles
from jepa_lm.data.tokenizers import SentencePieceBPE
text, cache, stays = sys.argv[1:]
build = prepare._build
def building(*args):
    build(*args)
    print("builds", flush=True)
    if stays == "yes":
        sys.stdin.read()
prepare._build = building
corpus = TextFiles(path=text, val_path=None, val_fraction=0.1)
spec = SentencePieceBPE(vocab_size=300, model=None, train_bytes=20_000)
made = prepare.prepare(corpus, spec, Path(cache))
print("has", made.train[0].stat().st_size, made.tokenizer.fingerprint)
"""


def test_the_others_go_on_when_the_one_that_builds_is_killed(tmp_path):
    text, cache = tmp_path / "a.txt", tmp_path / "cache"
    text.write_text("".join(f"line {i} of a text with so many words\n" for i in range(300)))

    def started(stays: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", WORK, str(text), str(cache), stays],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = started("yes")
    assert first.stdout is not None
    assert first.stdout.readline() == "builds\n"
    others = [started("no") for _ in range(3)]
    for other in others:  # each reports that it waits
        assert other.stderr is not None
        assert "another process is writing there; waiting for it" in other.stderr.readline()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    said = [other.communicate()[0].splitlines() for other in others]
    assert [other.returncode for other in others] == [0, 0, 0]
    assert sum("builds" in lines for lines in said) == 1
    assert len({lines[-1] for lines in said}) == 1
    assert said[0][-1].startswith("has ")
    left = sorted(path.name for path in (cache / "prepared").iterdir())
    assert len(left) == 2  # the data, and the folder of locks
    assert left[0] == ".locks"
