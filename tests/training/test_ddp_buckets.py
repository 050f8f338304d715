"""DDP's compiler cuts a compiled loss into a piece for each bucket of gradients, with QAT as without it."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepa_lm.quantization import qat
from jepa_lm.quantization.qat import FakeQuantizedWeights
from jepa_lm.training.module import LanguageModelTask
from jepa_lm.utils.config import resolve

BUCKETS = 7


@pytest.fixture
def one_rank(monkeypatch):
    """A group of this process alone; buckets of a small model are small."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1024)
    yield
    dist.destroy_process_group()


class Step(nn.Module):
    """The loss of a task, compiled as in training; counts the pieces."""

    def __init__(self, task: LanguageModelTask) -> None:
        super().__init__()
        self.model, self.pieces = task.model, 0
        self.losses = torch.compile(task._losses, backend=self._counted)

    def _counted(self, graph, inputs):
        self.pieces += 1
        return graph.forward

    def forward(self, ids: Tensor) -> Tensor:
        return self.losses({"inputs": ids[:, :-1], "targets": ids[:, 1:]}, None)[0]


def pieces(small, *, quantized: bool) -> int:
    torch._dynamo.reset()
    torch.manual_seed(0)
    task = LanguageModelTask(resolve(small("model.backbone.layers=6", "quantization=int6")))
    task.keep_tables()
    step = Step(task)
    size = sum(p.numel() * p.element_size() for p in step.parameters())
    parallel = DistributedDataParallel(step, bucket_cap_mb=size / BUCKETS / 2**20)
    if quantized:
        FakeQuantizedWeights(task.model, task.formats).swap_in()
    parallel(torch.randint(0, task.model.vocab_size, (2, 33))).backward()
    return step.pieces


def test_quantized_weights_make_no_more_buckets(small, one_rank, monkeypatch):
    monkeypatch.setattr(qat, "_joined", lambda matrix: True)  # as on a GPU
    without = pieces(small, quantized=False)
    assert 3 <= without <= BUCKETS + 1
    assert pieces(small, quantized=True) == without


def test_weights_that_share_memory_would_be_seen(small, one_rank, monkeypatch):
    """Planted bug: the parts of the joined tensor are swapped in as they are, so each layer is a piece."""
    monkeypatch.setattr(qat, "_joined", lambda matrix: True)
    monkeypatch.setattr(FakeQuantizedWeights, "_buffer", lambda self, i, part: part)
    monkeypatch.setattr(torch, "_foreach_copy_", lambda into, parts: None)
    assert pieces(small, quantized=True) > 2 * BUCKETS
