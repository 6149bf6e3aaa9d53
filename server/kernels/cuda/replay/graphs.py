"""CUDA graphs: work that is launched once, and from then on replayed by one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Protocol

import torch

logger = logging.getLogger(__name__)


class Replayed(Protocol):
    """Captured work that can be launched again, as a CUDA graph is."""

    def replay(self) -> None:
        """Launch it on the current stream."""


Capture = Callable[[Callable[[], None]], Replayed]


class CudaGraphs:
    """Captures functions, one for each key, and replays them on the current stream.

    A function must read and write memory that stays in place, and may not ask the device for anything. One
    that can't be captured is launched every time, and the others are none the worse for it.
    """

    def __init__(self, capture: Callable[[], Capture] | None = None) -> None:
        """``capture`` makes what turns functions into graphs; without it, torch does."""
        self._new_capture = GraphCapture if capture is None else capture
        self._capture = self._new_capture()
        self._graphs: dict[Hashable, Replayed | None] = {}  # None: its capture failed
        self._left: int | None = None  # captures that may still be tried; None: any number

    @property
    def keys(self) -> frozenset[Hashable]:
        """The keys that have a graph."""
        return frozenset(key for key, graph in self._graphs.items() if graph is not None)

    @property
    def num_failed(self) -> int:
        """Keys whose capture failed."""
        return sum(graph is None for graph in list(self._graphs.values()))

    def restart(self) -> None:
        """Forget every graph: another thread is to capture them, on streams of its own."""
        self._graphs.clear()
        self._capture = self._new_capture()
        self._left = None

    def seal(self, late: int = 0) -> None:
        """Capture at most ``late`` more: while requests run, each capture holds all of them up."""
        self._left = late

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Do what ``function`` does; it is called only until its graph exists."""
        if key not in self._graphs and self._left != 0:
            if self._left is not None:
                self._left -= 1
            self._graphs[key] = self._captured(key, function)
        graph = self._graphs.get(key)
        if graph is None:
            function()
        else:
            graph.replay()

    def _captured(self, key: Hashable, function: Callable[[], None]) -> Replayed | None:
        try:
            return self._capture(function)
        except RuntimeError as error:  # what torch raises for every error of CUDA
            logger.warning("%s runs without a CUDA graph, which is slower: %s", key, error)
            return None


class GraphCapture:
    """Runs functions under torch's capture of CUDA graphs, all on one stream beside the current one."""

    def __init__(self) -> None:
        self._pool: Any = None  # replayed one after the other, the graphs share their memory
        self._side: Any = None  # libraries keep a workspace for every stream they have seen

    def __call__(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The graph of all that ``function`` launches. It is called once before it is captured.

        The calling thread is on the stream it came with afterwards, whatever happened.
        """
        if self._pool is None:
            self._pool, self._side = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        own, side = torch.cuda.current_stream(), self._side
        try:
            side.wait_stream(own)
            torch.cuda.set_stream(side)
            # Once without capturing: kernels are compiled and libraries take their workspaces on first use.
            function()
            torch.cuda.synchronize()
            return self._capture(function)
        finally:
            torch.cuda.set_stream(own)
            own.wait_stream(side)

    def _capture(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads copy adapters to the device meanwhile, which is none of the graph's.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            function()
        except BaseException:
            with suppress(
                RuntimeError
            ):  # a broken capture is ended by an error, which says less than the first
                graph.capture_end()
            raise
        graph.capture_end()
        return graph
