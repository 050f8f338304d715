"""Score an artifact on shards of tokens: the minimal program that an evaluation of the challenge runs.

    python -m jepa_lm.artifact.score artifact.br fineweb_val_000000.bin fineweb_1024_bpe.model stride=64

prints the score as one line of JSON. `export.code=inference` writes and counts the modules imported here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from jepa_lm.artifact.loading import Loaded, load_model
from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from jepa_lm.data.windows import SlidingWindows, StandardWindows
from jepa_lm.evaluation.bpb import Score, score_from_sums
from jepa_lm.evaluation.scoring import Scorer, score_windows
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.process import tune
from jepa_lm.utils.quoting import one_line

USAGE = "python -m jepa_lm.artifact.score ARTIFACT SHARD.bin ... [TOKENIZER.model] [stride=N]"
MODEL, SHARD, STRIDE = ".model", ".bin", "stride="


def score(artifact: Path, shards: list[Path], model: Path | None, stride: int | None) -> Score:
    """Score all targets of the shards, in windows of the run's training length.

    Args:
        shards: shards of the validation split, in order. model: SentencePiece model, None for bytes.
        stride: stride of sliding windows, None for non-overlapping windows.

    Raises:
        UserError: the file is damaged, or the tokenizer is not the artifact's.
    """
    loaded = load_model(artifact)
    data, stream = loaded.meta["data"], TokenStream(shards)
    table = _tokenizer(loaded, model).token_bytes()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = Scorer.of(loaded.model, ByteCounter(table), device, loaded.meta["precision"])
    scorer = scorer._replace(temperature=loaded.meta["temperature"])
    T = data["seq_len"]
    rows = max(1, data["val_batch_tokens"] // T)
    windows: StandardWindows | SlidingWindows
    if stride is None:
        windows = StandardWindows(stream, seq_len=T, rows=rows)
    else:
        windows = SlidingWindows(stream, seq_len=T, stride=stride, rows=rows, device=device)
    return score_from_sums(*score_windows(scorer, windows).tolist())


def _tokenizer(loaded: Loaded, path: Path | None) -> Tokenizer:
    """Return the tokenizer that the model was trained with.

    Raises:
        UserError: the given tokenizer is a different one.
    """
    V = loaded.model.vocab_size
    found: Tokenizer
    if path is None:
        found = ByteTokenizer(vocab_size=V)
    else:
        found = SentencePieceTokenizer(path.read_bytes(), vocab_size=V, source=str(path))
    if found.fingerprint != loaded.meta["tokenizer"]:
        raise UserError(
            f"{path or 'bytes'}: the artifact was trained with a different tokenizer "
            f"({loaded.meta['tokenizer'][:12]}, this is {found.fingerprint[:12]})"
        )
    return found


def main(words: list[str]) -> int:
    """Print the score. Return exit code 0, or 2 after one line of error."""
    models, shards, strides = (
        [word for word in words[1:] if fits(word)]
        for fits in (
            lambda word: word.endswith(MODEL),
            lambda word: word.endswith(SHARD),
            lambda word: word.startswith(STRIDE) and word.removeprefix(STRIDE).isdigit(),
        )
    )
    understood = len(words) == 1 + len(models) + len(shards) + len(strides)
    if not understood or not shards or len(models) > 1 or len(strides) > 1:
        print(USAGE, file=sys.stderr)
        return 2
    tune()
    try:
        found = score(
            Path(words[0]),
            [Path(shard) for shard in shards],
            Path(models[0]) if models else None,
            int(strides[0].removeprefix(STRIDE)) if strides else None,
        )
    except (UserError, OSError) as error:
        print(one_line(error), file=sys.stderr)
        return 2
    print(json.dumps(found.as_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
