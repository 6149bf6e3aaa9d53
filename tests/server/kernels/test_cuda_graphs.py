"""CUDA graphs: what is captured is replayed, and where that fails steps are launched one by one."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from manylora.server.kernels.cuda.graphs import CudaGraphs, Replayed


def test_without_graphs_every_call_is_made(caplog: pytest.LogCaptureFixture) -> None:
    def refused(_: object) -> Replayed:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs, made = CudaGraphs(refused), list[str]()
    for key in ("a", "a", "b"):
        graphs.run(key, partial(made.append, key))
    assert made == ["a", "a", "b"]
    assert [record.getMessage() for record in caplog.records] == [
        "decode steps run without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_a_function_is_not_called_again() -> None:
    class Graph:
        replays = 0

        def replay(self) -> None:
            self.replays += 1

    one, other = Graph(), Graph()
    made = iter([one, other])
    graphs = CudaGraphs(lambda _: next(made))
    for key in ("a", "b", "a", "a"):
        graphs.run(key, lambda: pytest.fail("it was launched beside its graph"))
    assert (one.replays, other.replays) == (3, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_reads_what_its_memory_holds_now() -> None:
    graphs = CudaGraphs()
    x, y = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")

    def compute() -> None:
        y.copy_(x * 2 + 1)

    for value in (1.0, 2.0, 5.0):
        x.fill_(value)
        graphs.run("key", compute)
        assert y.tolist() == [2 * value + 1] * 3
