"""Compress each stream with the codec that makes it smallest; codecs run in parallel processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jepa_lm.artifact.codecs import COMPRESSORS, compress, decompress, pieces
from jepa_lm.utils.console import bars
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.process import fresh_python

HERE = 1 << 20
"""Below this many bytes, compress in this process: starting others would take longer."""


@dataclass(frozen=True)
class Compressed:
    """A compressed stream."""

    codec: str
    data: bytes
    raw_bytes: int
    sizes: dict[str, int]
    """Compressed size by codec; empty for a stream out of a file."""

    def unpacked(self) -> bytes:
        """Return the stream before compression.

        Raises:
            UserError: it is damaged.
        """
        return decompress(self.codec, self.data, self.raw_bytes)


def compress_best(streams: Sequence[bytes], codecs: Sequence[str]) -> list[Compressed]:
    """Compress every stream with every codec and keep the smallest; show progress bars on stderr.

    Runs one process per core at a time, slowest codec first.
    """
    jobs = [(codec, i) for codec in COMPRESSORS if codec in codecs for i in range(len(streams))]
    total = sum(map(len, streams))
    found: dict[tuple[str, int], bytes]
    if total < HERE:
        found = {(codec, i): compress(codec, streams[i]) for codec, i in jobs}
    else:
        with bars("compressing") as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = {codec: progress.add_task(codec, total=total, start=False) for codec in codecs}

            def run(job: tuple[str, int]) -> bytes:
                codec, i = job
                progress.start_task(rows[codec])
                return _in_a_process(codec, streams[i], lambda n: progress.advance(rows[codec], n))

            found = dict(zip(jobs, pool.map(run, jobs), strict=True))
    return [
        _smallest({codec: found[codec, i] for codec in codecs}, len(raw))
        for i, raw in enumerate(streams)
    ]


def _smallest(packed: dict[str, bytes], raw_bytes: int) -> Compressed:
    sizes = {codec: len(data) for codec, data in packed.items()}
    best = min(sizes, key=sizes.__getitem__)
    return Compressed(best, packed[best], raw_bytes, sizes)


def _in_a_process(codec: str, raw: bytes, took: Callable[[int], object]) -> bytes:
    """Compress in a fresh process, calling `took` with the size of each chunk it has read.

    The pipe holds less than a chunk, so a chunk that has been written has been read by the codec.
    """
    command = ("-m", "jepa_lm.artifact.codecs", codec, str(len(raw)))
    process = fresh_python(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    packed = b""
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for piece in pieces(raw):
                process.stdin.write(piece)
                took(len(piece))
            process.stdin.close()
            packed = process.stdout.read()
        except BrokenPipeError:  # the process has ended
            pass
        except BaseException:
            process.kill()
            raise
    if process.returncode or not packed:
        raise UserError(
            f"export.codecs: the process of {codec} ended with exit code {process.returncode}, possibly "
            f"out of memory; leave out {codec} or free some memory"
        )
    return packed
