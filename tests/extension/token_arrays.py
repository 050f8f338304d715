"""Token ids in NumPy arrays, as another project may have left them: `train.npy` and `val.npy` in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from jepa_lm.data.corpora import SPLITS, ShardCorpus, Shards
from jepa_lm.data.shards import ShardWriter
from jepa_lm.utils.errors import UserError


class TokenArrays(ShardCorpus):
    """Writes each array to a shard, once.

    Args:
        path: the folder.
    """

    remedy = "a longer train.npy"

    def __init__(self, *, path: str) -> None:
        self.path = Path(path)

    def shards(self, cache_dir: Path, most_train: int | None = None) -> Shards:
        train, val = (self._shard(self.path / f"{split}.npy", cache_dir) for split in SPLITS)
        return Shards([train], [val])

    @staticmethod
    def _shard(source: Path, cache_dir: Path) -> Path:
        if not source.is_file():
            raise UserError(f"data.path={source.parent}: has no {source.name}")
        ids = np.load(source)
        shard = cache_dir / "arrays" / f"{hashlib.sha256(ids.tobytes()).hexdigest()}.bin"
        if not shard.exists():
            shard.parent.mkdir(exist_ok=True)
            with ShardWriter(shard) as writer:
                writer.write(ids)
        return shard
