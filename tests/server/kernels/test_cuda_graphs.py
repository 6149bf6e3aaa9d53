"""CUDA graphs: what is captured is replayed, and what can't be is launched every time, alone of all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from manylora.server.kernels.cuda.replay.buckets import (
    MAX_CHUNK_ROWS,
    MAX_ROWS,
    Bucket,
    bucket_for,
    buckets_up_to,
    chunk_bucket_for,
    chunk_counts,
)
from manylora.server.kernels.cuda.replay.graphs import CudaGraphs, GraphCapture, Replayed


class Graph:
    """Counts how often it is replayed."""

    replays = 0

    def replay(self) -> None:
        self.replays += 1


def test_what_cannot_be_captured_is_called_every_time_and_the_others_are_replayed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made: list[str] = []
    graph = Graph()

    def capture(function: Callable[[], None]) -> Replayed:
        if function.args[0] == "bad":  # type: ignore[attr-defined]
            raise RuntimeError("operation not permitted when stream is capturing")
        return graph

    graphs = CudaGraphs(lambda: capture)
    for key in ("bad", "good", "bad", "good", "good"):
        graphs.run(key, partial(made.append, key))
    assert made == ["bad", "bad"]
    assert graph.replays == 3
    assert graphs.num_failed == 1
    assert graphs.keys == {"good"}
    assert [record.getMessage() for record in caplog.records] == [
        "bad runs without a CUDA graph, which is slower: operation not permitted when stream is capturing"
    ]


def test_a_function_is_not_called_again() -> None:
    one, other = Graph(), Graph()
    made = iter([one, other])
    graphs = CudaGraphs(lambda: lambda _: next(made))
    for key in ("a", "b", "a", "a"):
        graphs.run(key, lambda: pytest.fail("it was launched beside its graph"))
    assert (one.replays, other.replays) == (3, 1)


def test_nothing_is_captured_once_sealed_until_it_starts_again() -> None:
    captures: list[int] = []

    def new() -> Callable[[Callable[[], None]], Replayed]:
        captures.append(0)

        def capture(_: Callable[[], None]) -> Replayed:
            captures[-1] += 1
            return Graph()

        return capture

    graphs, called = CudaGraphs(new), list[str]()
    graphs.run("a", partial(called.append, "a"))
    graphs.seal()
    graphs.run("a", partial(called.append, "a"))
    graphs.run("late", partial(called.append, "late"))
    assert (called, captures, graphs.num_failed) == (["late"], [1], 0)
    graphs.restart()
    assert not graphs.keys
    graphs.run("late", partial(called.append, "late"))
    assert (called, captures) == (["late"], [1, 1]), "on a stream of its own"


def test_a_sealed_set_captures_as_many_more_as_it_was_given() -> None:
    def capture(function: Callable[[], None]) -> Replayed:
        if function.args[0] == "bad":  # type: ignore[attr-defined]
            raise RuntimeError("operation not permitted when stream is capturing")
        return Graph()

    graphs, called = CudaGraphs(lambda: capture), list[str]()
    graphs.run("first", partial(called.append, "first"))
    graphs.seal(late=2)
    for key in ("first", "bad", "late", "too late", "late", "bad", "too late"):
        graphs.run(key, partial(called.append, key))
    assert graphs.keys == {"first", "late"}
    assert called == ["bad", "too late", "bad", "too late"], "one that fails holds requests up as well"


class FakeCuda:
    """torch.cuda as far as a capture asks for it, and what the calling thread's stream is."""

    def __init__(self, patch: pytest.MonkeyPatch, fails: str | None) -> None:
        self.log: list[str] = []
        self.current: Any = "own"
        self.fails = fails
        self.streams = 0
        fake = self

        class Stream:
            def __init__(self) -> None:
                fake.streams += 1

            def wait_stream(self, other: object) -> None:
                fake.log.append(f"side waits for {other if isinstance(other, str) else 'side'}")

        class Own(str):
            def wait_stream(self, _: object) -> None:
                fake.log.append("own waits for side")

        class CUDAGraph:
            def capture_begin(self, **options: object) -> None:
                assert options["capture_error_mode"] == "thread_local"
                fake.log.append("begin")

            def capture_end(self) -> None:
                fake.log.append("end")
                if fake.fails is not None:
                    raise RuntimeError("capture was invalidated")

        self.current = own = Own("own")
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        patch.setattr(torch.cuda, "current_stream", lambda: self.current)
        patch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "current", stream))
        patch.setattr(torch.cuda, "synchronize", lambda: self.log.append("synchronize"))
        self.own = own


@pytest.mark.parametrize("fails", [None, "warming up", "capturing"])
def test_the_thread_is_back_on_its_own_stream_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, fails: str | None
) -> None:
    cuda = FakeCuda(monkeypatch, fails)
    capture, calls = GraphCapture(), list[object]()

    def function() -> None:
        calls.append(cuda.current)
        if fails == ("warming up" if len(calls) == 1 else "capturing"):
            raise RuntimeError("the first error")

    for _ in range(2):
        calls.clear()
        if fails is None:
            assert capture(function) is not None
        else:
            with pytest.raises(RuntimeError, match="the first error"):
                capture(function)
        assert cuda.current is cuda.own
        assert cuda.own not in calls, "libraries would take a workspace for the capture on a stream of no use"
    assert cuda.streams == 1, "one stream for all graphs"
    assert cuda.log.count("begin") == (0 if fails == "warming up" else 2)
    assert cuda.log.count("end") == cuda.log.count("begin")


@pytest.mark.parametrize("rows", [1, 3, 17, 100, MAX_ROWS, 1000])
@pytest.mark.parametrize("context", [1, 128, 129, 4096, 131_072])
def test_what_is_captured_at_start_is_all_that_is_ever_needed(rows: int, context: int) -> None:
    captured = buckets_up_to(rows, context)
    assert len(captured) == len(set(captured)) <= 13 * 6
    assert max(captured, key=lambda b: b.rows * b.partitions) == captured[0], "the largest comes first"
    for n in range(1, min(rows, MAX_ROWS) + 1):
        for length in {1, min(128, context), min(129, context), context // 2 + 1, context}:
            bucket = bucket_for(n, length)
            assert bucket in captured
            assert bucket.rows >= n
    assert bucket_for(1, 1) == Bucket(1, 1)


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 100, MAX_CHUNK_ROWS, 2048])
@pytest.mark.parametrize("sequences", [1, 4, 256])
@pytest.mark.parametrize("context", [1, 10, 100, 8192])
def test_chunks_that_are_captured_at_start_are_all_that_are_ever_needed(
    rows: int, sequences: int, context: int
) -> None:
    counts = chunk_counts(rows, sequences, context)
    for one in counts:
        assert sum(one) <= rows
        assert 2 <= min(one) <= max(one) <= context
        assert len(one) <= sequences
    captured = [chunk_bucket_for(sum(one), len(one)) for one in counts]
    assert len(captured) == len(set(captured)) <= 7
    held = [bucket.rows for bucket in captured if bucket is not None]
    assert held == sorted(held, reverse=True), "the largest comes first"
    assert None not in captured
    for n in range(2, min(rows, MAX_CHUNK_ROWS) + 1):
        for many in {-(-n // context), *range(1, sequences + 1, 7), min(sequences, n // 2)}:
            if many <= sequences and 2 * many <= n <= many * context:
                assert chunk_bucket_for(n, many) in (*captured, None)


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
