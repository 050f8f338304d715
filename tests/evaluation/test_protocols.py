"""Scores of the protocols compared with brute force, and the settings that they refuse."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from jepa_lm.artifact.loaded_model import HeldFile
from jepa_lm.commands.evaluate import _worker
from jepa_lm.data.byte_counter import ByteCounter
from jepa_lm.data.shards import ShardWriter
from jepa_lm.data.stream import TokenStream
from jepa_lm.data.tokenizers import ByteTokenizer
from jepa_lm.data.windows import SlidingWindows, StandardWindows
from jepa_lm.evaluation.continuations import Continued, log_likelihoods
from jepa_lm.evaluation.protocols import tokens_read
from jepa_lm.evaluation.scoring import (
    Scorer,
    documents,
    score_documents,
    score_stream,
    score_windows,
)
from jepa_lm.model.streaming import why_not_stream
from jepa_lm.run import evaluate, train
from jepa_lm.utils.config import build, resolve
from jepa_lm.utils.errors import RankError, UserError
from tests.model.test_mamba2 import LOOKS_BACK, TINY, noisy

CPU = torch.device("cpu")
BOS = 1


def model(compose, *overrides):
    config = resolve(compose("train", *TINY, "model.vocab_size=260", *LOOKS_BACK, *overrides))
    torch.manual_seed(0)
    return noisy(build("model", config["model"])).double().eval()


def transformer(compose):
    sizes = (
        "model.vocab_size=260",
        "model.dim=32",
        "model.backbone.heads=4",
        "model.backbone.rope_dims=4",
    )
    config = resolve(compose("train", *sizes, "model.backbone.kv_heads=2"))
    torch.manual_seed(0)
    return noisy(build("model", config["model"])).double().eval()


@pytest.fixture
def stream(tmp_path) -> TokenStream:
    """Documents of very different lengths, spread over two shards."""
    rng = np.random.default_rng(0)
    parts = [[BOS, *rng.integers(4, 260, size=n)] for n in (3, 70, 1, 0, 41, 9, 16, 33)]
    ids = np.concatenate(parts)
    for number, half in enumerate((ids[:100], ids[100:])):
        with ShardWriter(tmp_path / f"{number}.bin") as shard:
            shard.write(half)
    return TokenStream([tmp_path / "0.bin", tmp_path / "1.bin"])


def tokens_of(stream) -> torch.Tensor:
    ids = np.empty(stream.total, dtype=np.int64)
    stream.read(0, ids)
    return torch.from_numpy(ids)


def scorer(a_model, **settings) -> Scorer:
    counter = ByteCounter(ByteTokenizer(vocab_size=260).token_bytes())
    return Scorer(model=a_model, byte_counter=counter, device=CPU, precision="32-true", **settings)


def nats(a_model, ids) -> float:
    """Return the nats of all targets of one text, from one pass over it."""
    with torch.no_grad():
        return F.cross_entropy(a_model(ids[None, :-1])[0][0], ids[1:], reduction="sum").item()


@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
def test_a_stream_scores_like_one_long_pass(compose, stream, piece):
    loaded, ids = model(compose), tokens_of(stream)
    got = score_stream(scorer(loaded), stream, piece=piece).tolist()
    assert got == pytest.approx(
        [nats(loaded, ids), len(ids) - 1, int((ids[1:] > 3).sum())], rel=1e-6
    )


def test_a_stream_never_reads_more_than_a_piece(compose, stream, monkeypatch):
    """Memory does not grow with the length of the text."""
    asked, read = [], stream.read
    monkeypatch.setattr(
        stream, "read", lambda start, out: (asked.append(len(out)), read(start, out))
    )
    score_stream(scorer(model(compose)), stream, piece=16)
    assert max(asked) == 17


@pytest.mark.parametrize(("piece", "rows"), [(5, 1), (16, 3), (64, 100)])
@pytest.mark.parametrize("world", [1, 3])
def test_documents_score_as_if_each_were_alone(compose, stream, piece, rows, world):
    loaded, ids = model(compose), tokens_of(stream)
    starts = [*(ids[:-1] == BOS).nonzero()[:, 0].tolist(), len(ids) - 1]
    wanted = sum(nats(loaded, ids[a : b + 1]) for a, b in pairwise(starts))
    shares = [
        score_documents(
            scorer(loaded, rank=rank, world_size=world), stream, bos_id=BOS, piece=piece, rows=rows
        )
        for rank in range(world)
    ]
    got = sum(shares).tolist()
    assert got == pytest.approx([wanted, len(ids) - 1, int((ids[1:] > 3).sum())], rel=1e-6)


def test_documents_start_at_bos_and_cover_the_text(stream):
    starts, lengths = documents(stream, BOS)
    ids = tokens_of(stream)
    assert all(ids[start] == BOS for start in starts)
    assert lengths.sum() == len(ids) - 1
    assert lengths.tolist() == sorted(lengths, reverse=True)
    order = np.argsort(starts)
    assert (starts + lengths)[order][:-1].tolist() == starts[order][1:].tolist()


def test_documents_are_found_far_into_a_split():
    ids = np.full(4_200_000, 5, dtype=np.uint16)  # more than is read at a time
    ids[[0, 9, 4_199_000]] = BOS
    starts, lengths = documents(TokenStream.of(ids), BOS)
    assert starts.tolist() == [9, 4_199_000, 0]
    assert lengths.tolist() == [4_198_991, 999, 9]


@pytest.mark.parametrize("backbone", [model, transformer])
@pytest.mark.parametrize(("stride", "rows", "world"), [(1, 4, 1), (5, 1, 1), (5, 3, 4), (16, 2, 3)])
def test_sliding_scores_equal_brute_force(compose, stream, backbone, stride, rows, world):
    """One window per target, cut and scored here."""
    loaded, ids, T = backbone(compose), tokens_of(stream), 16
    ends = []
    for target in range(1, len(ids)):
        # The windows in order: the first T targets together, then `stride` at a time, the tail at the end.
        ends.append(
            T if target <= T else min(T + -(-(target - T) // stride) * stride, len(ids) - 1)
        )
    with torch.no_grad():  # all have T tokens
        logits = loaded(torch.stack([ids[end - T : end] for end in ends]))[0]
    own = torch.stack(
        [
            row[target - end - 1]
            for target, (row, end) in enumerate(zip(logits, ends, strict=True), 1)
        ]
    )
    total = F.cross_entropy(own, ids[1:], reduction="sum").item()
    windows = SlidingWindows(stream, seq_len=T, stride=stride, rows=rows, device=CPU)
    shares = [
        score_windows(scorer(loaded, rank=rank, world_size=world), windows) for rank in range(world)
    ]
    got = sum(shares).tolist()
    assert got == pytest.approx([total, len(ids) - 1, int((ids[1:] > 3).sum())], rel=1e-6)


def test_temperature_divides_the_logits(compose, stream):
    loaded, ids = model(compose), tokens_of(stream)
    with torch.no_grad():
        logits = loaded(ids[None, :-1])[0][0] / 1.7
    wanted = F.cross_entropy(logits, ids[1:], reduction="sum").item()
    warm = scorer(loaded, temperature=1.7)
    assert score_stream(warm, stream, piece=50)[0].item() == pytest.approx(wanted, rel=1e-6)
    one = SlidingWindows(stream, seq_len=len(ids) - 1, stride=1, rows=1, device=CPU)
    assert score_windows(warm, one)[0].item() == pytest.approx(wanted, rel=1e-6)


def test_a_text_of_several_windows_is_greedy_only_if_all_are(compose, stream):
    """The last token is the likeliest one; those of the windows before it are random."""
    loaded, T = transformer(compose), 16
    for length in (T, 2 * T):
        ids = tokens_of(stream)[5 : 6 + length]
        with torch.no_grad():
            likeliest = loaded(ids[None, -T:])[0][0, -1].argmax().item()
        text = [*ids.tolist(), likeliest]
        texts = [Continued(text, scored) for scored in (length + 1, 1)]
        whole, end = log_likelihoods(scorer(loaded), texts, seq_len=T, rows=2)
        assert (whole.greedy, end.greedy) == (False, True)
        assert whole.nats < end.nats < 0


@pytest.fixture(scope="session")
def recurrent(tmp_path_factory, small_text):
    """A small Mamba-2 run, trained once."""
    import hydra

    from jepa_lm.utils.paths import CONF
    from tests.conftest import SMALL_MAMBA2

    folder = tmp_path_factory.mktemp("recurrent")
    here = [f"data.path={small_text}", f"paths.run_dir={folder}"]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=[*SMALL_MAMBA2, *here, "eval.stride=8"])
    train(cfg)
    return folder


QUICK = ("eval.baselines=false", "eval.audit=false")


def result_of(compose, tmp_path, *overrides):
    evaluate(compose("eval", *QUICK, *overrides))
    return json.loads((tmp_path / "run" / "eval.json").read_text())


def test_each_protocol_has_its_name_and_its_numbers(recurrent, compose, tmp_path):
    ckpt = f"ckpt_path={recurrent}"
    found = {
        name: result_of(compose, tmp_path, ckpt, *overrides)
        for name, overrides in {
            "standard": (),
            "sliding": ("eval=sliding",),
            "stride": ("eval=sliding", "eval.stride=32"),
            "stream": ("eval=stream",),
            "documents": ("eval=stream", "eval.reset=document"),
        }.items()
    }
    assert [r["protocol"] for r in found.values()] == [
        "standard",
        "sliding",
        "sliding",
        "stream",
        "stream",
    ]
    assert len({(r["tokens"], r["bytes"]) for r in found.values()}) == 1
    assert found["sliding"]["stride"] == 8  # the run's own
    assert found["stride"]["stride"] == 32
    assert (found["stream"]["reset"], found["documents"]["reset"]) == ("none", "document")
    assert "stride" not in found["standard"]
    assert all(r["in_time"] and r["max_seconds"] == 600 for r in found.values())
    # A stride of a whole window differs from separate windows only in the tail's context.
    assert found["stride"]["nll"] == pytest.approx(found["standard"]["nll"], abs=5e-3)
    # The small text is one document.
    assert found["stream"]["nll"] == pytest.approx(found["documents"]["nll"], abs=1e-6)
    assert len({round(r["nll"], 5) for r in found.values()}) == 4


@pytest.mark.parametrize("batch_tokens", [32, 96, 5000])
@pytest.mark.parametrize("protocol", ["sliding", "stream"])
def test_the_score_does_not_depend_on_the_batch(
    recurrent, compose, tmp_path, protocol, batch_tokens
):
    both = [
        result_of(compose, tmp_path, f"ckpt_path={recurrent}", f"eval={protocol}", *more)["nll"]
        for more in ((), (f"eval.batch_tokens={batch_tokens}",))
    ]
    assert both[0] == pytest.approx(both[1], abs=1e-6)


def test_too_slow_is_said(recurrent, compose, tmp_path, capsys):
    result = result_of(compose, tmp_path, f"ckpt_path={recurrent}", "eval.max_seconds=1e-6")
    assert result["in_time"] is False
    assert "more than eval.max_seconds=1e-06" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("eval.stride=8",), r"eval\.stride=8: applies only to eval=sliding, not to"),
        (
            ("eval=sliding", "eval.reset=document"),
            r"eval\.reset=document: applies only to eval=stream",
        ),
        (
            ("eval=stream", "eval.reset=documents"),
            r"eval\.reset=documents: expected one of none, document",
        ),
        (("eval=stream", "devices=2"), r"devices=2: one stream is read by one process"),
        (("devices=0",), r"devices=0: expected a whole number of at least 1"),
        (("eval=stream", "eval.compile=true"), r"eval\.compile=true: only windows are compiled"),
        (("eval.temperature=search",), r"eval\.temperature=search: only export\.py can search"),
        (("eval.temperature=-1",), r"eval\.temperature=-1: expected a number above 0"),
        (("eval=sliding", "eval.stride=33"), r"eval\.stride=33: 1 to the window length 32"),
        (
            ("eval=sliding", "eval.stride=0"),
            r"eval\.stride=0: expected a whole number of at least 1 or null",
        ),
        (("eval.seq_len=0",), r"eval\.seq_len=0: expected a whole number of at least 1 or null"),
        (("eval.seq_len=99999999",), r"eval\.seq_len=99999999: the training split holds"),
        (
            ("eval.batch_tokens=-4",),
            r"eval\.batch_tokens=-4: expected a whole number of at least 1 or null",
        ),
        (
            ("eval.baseline_bytes=0",),
            r"eval\.baseline_bytes=0: expected a whole number of at least 1",
        ),
        (("eval.max_seconds=nan",), r"eval\.max_seconds=nan: a number more than 0"),
        (("eval.precision=half",), r"eval\.precision=half: expected one of auto, 32-true"),
        (("device=meta",), r"device=meta is not available on this machine"),
    ],
)
def test_settings_that_cannot_be_are_named(recurrent, compose, overrides, words):
    with pytest.raises(UserError, match=words):
        evaluate(compose("eval", f"ckpt_path={recurrent}", *QUICK, *overrides))


def test_a_score_that_is_no_number_is_no_result(trained, compose, tmp_path, monkeypatch):
    nothing = torch.tensor([float("nan"), 1.0, 1.0])
    monkeypatch.setattr("jepa_lm.commands.evaluate.score_split", lambda *_: nothing)
    with pytest.raises(
        UserError, match=r"last\.ckpt: its score is NaN or infinite \(precision 32-true"
    ):
        evaluate(compose("eval", f"ckpt_path={trained.folder}", *QUICK))
    assert not (tmp_path / "run" / "eval.json").exists()


def test_processes_that_share_the_work_score_the_same_weights(trained, compose):
    """Each process reads the file itself; a stand-in for one of them reads different weights."""
    config = resolve(compose("eval", f"ckpt_path={trained.folder}", *QUICK))
    held = HeldFile("ckpt_path", trained.checkpoint, trained.checkpoint)
    fabric = SimpleNamespace(device=CPU, world_size=1)
    with pytest.raises(UserError, match=r"last\.ckpt: the file changed while it was loaded"):
        _worker(fabric, config, held, "of other weights")


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        ("Traceback\n\njepa_lm.utils.errors.UserError: a=1: no", UserError, r"^a=1: no$"),
        ("Traceback\n\nRuntimeError: a bug", ProcessRaisedException, "RuntimeError: a bug"),
        (None, RankError, r"devices=2: process 1 was killed"),
    ],
)
def test_an_error_of_a_process_that_shares_the_work_is_one_line(
    trained, compose, monkeypatch, raised, kind, words
):
    def launch(*_):
        if raised is None:
            raise ProcessExitedException(
                "process 1 was killed", error_index=1, error_pid=1, exit_code=-9
            )
        raise ProcessRaisedException(raised, error_index=1, error_pid=1)

    monkeypatch.setattr("lightning.fabric.Fabric.launch", launch)
    two = (f"ckpt_path={trained.folder}", *QUICK, "devices=2", "device=cpu")
    with pytest.raises(kind, match=words):
        evaluate(compose("eval", *two))


def test_a_transformer_is_told_why_it_cannot_stream(trained, compose):
    with pytest.raises(
        UserError, match=r"eval=stream: .*keys and values exactly.*use eval=sliding"
    ):
        evaluate(compose("eval", f"ckpt_path={trained.folder}", *QUICK, "eval=stream"))


def test_an_injector_is_told_why_it_cannot_stream(compose):
    sizes = ("model/injector=chunk", "model.injector.hidden=8", "model.injector.latent=8")
    assert "whole chunks" in why_not_stream(model(compose, *sizes))


def test_text_without_documents_is_not_read_by_document(recurrent, compose, monkeypatch):
    monkeypatch.setattr(
        "jepa_lm.data.tokenizers.SentencePieceTokenizer.bos_id", None, raising=False
    )
    from jepa_lm.artifact import text

    load = text.load_data

    def without_bos(*args):
        data = load(*args)
        data.tokenizer.bos_id = None
        return data

    monkeypatch.setattr("jepa_lm.artifact.text.load_data", without_bos)
    with pytest.raises(UserError, match=r"eval\.reset=document: this tokenizer marks no documents"):
        evaluate(
            compose("eval", f"ckpt_path={recurrent}", *QUICK, "eval=stream", "eval.reset=document")
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "protocol", [("eval=sliding",), ("eval=stream", "eval.reset=document"), ()]
)
def test_two_processes_give_the_score_of_one(recurrent, compose, tmp_path, protocol):
    from tests.processes import run

    here = (f"ckpt_path={recurrent}", *protocol, "device=cpu")
    one = result_of(compose, tmp_path, *here)
    folder = tmp_path / "two"
    run("eval.py", *QUICK, *here, "devices=2", f"hydra.run.dir={folder}")
    two = json.loads((folder / "eval.json").read_text())
    assert (one["tokens"], one["bytes"]) == (two["tokens"], two["bytes"])
    assert one["nll"] == pytest.approx(two["nll"], abs=1e-6)


@pytest.mark.slow
def test_a_compiled_score_equals_the_eager_one(recurrent, compose, tmp_path, capsys):
    """Sliding windows of three shapes: the first, the usual ones, and the remainder."""
    both = {
        choice: result_of(
            compose, tmp_path, f"ckpt_path={recurrent}", "eval=sliding", f"eval.compile={choice}"
        )
        for choice in ("false", "true")
    }
    assert both["true"]["compiled"]
    assert not both["false"]["compiled"]
    assert both["true"]["nll"] == pytest.approx(both["false"]["nll"], abs=1e-6)
    assert both["true"]["tokens"] == both["false"]["tokens"]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("compil")]
    assert told[0] == "compiling the model for windows of 32 tokens ..."
    assert told[1].startswith("compiled in ")
    assert len(told) == 2


@given(
    total=st.integers(2, 300),
    seq_len=st.integers(1, 40),
    stride=st.integers(1, 40),
    rows=st.integers(1, 7),
)
def test_the_tokens_that_a_model_reads_are_counted_before(total, seq_len, stride, rows):
    stream, stride = (
        SimpleNamespace(total=total, read=lambda start, out: None),
        min(stride, seq_len),
    )
    split = SimpleNamespace(seq_len=seq_len, stream=stream)
    sliding = SlidingWindows(stream, seq_len=seq_len, stride=stride, rows=rows, device=CPU)
    standard = StandardWindows(stream, seq_len=seq_len, rows=rows)
    for protocol, windows in (("sliding", sliding), ("standard", standard)):
        read = sum(windows[i]["inputs"].numel() for i in range(len(windows)))
        assert tokens_read(split, {"protocol": protocol, "stride": stride}, 1) == read
