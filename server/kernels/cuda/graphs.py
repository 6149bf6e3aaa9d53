"""CUDA graphs: work that is launched once, and from then on replayed by one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
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

    A function must read and write memory that stays in place, and may not ask the device for anything.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        """``capture`` turns a function into its graph; without it, torch does."""
        self._capture = GraphCapture() if capture is None else capture
        self._graphs: dict[Hashable, Replayed] = {}
        self._broken = False

    @property
    def keys(self) -> frozenset[Hashable]:
        """The keys that have a graph."""
        return frozenset(self._graphs)

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Do what ``function`` does; it is called only until its graph exists."""
        if self._broken:
            function()
            return
        if key not in self._graphs:
            try:
                self._graphs[key] = self._capture(function)
            except RuntimeError as error:  # what torch raises for every error of CUDA
                self._broken = True
                logger.warning("decode steps run without CUDA graphs: %s", error)
                function()
                return
        self._graphs[key].replay()


class GraphCapture:
    """Runs functions under torch's capture of CUDA graphs."""

    def __init__(self) -> None:
        self._pool: Any = None  # replayed one after the other, the graphs share their memory

    def __call__(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The graph of all that ``function`` launches. It is called once before it is captured."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Once without capturing: kernels are compiled and libraries take their workspaces on first use.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads copy adapters to the device meanwhile, which is none of the graph's.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            function()
        return graph
