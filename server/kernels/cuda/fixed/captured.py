"""What is captured where rows that decode go the way of prompts, as those who run the engine see it."""

from __future__ import annotations

from manylora.server.kernels.cuda.fixed.buckets import decode_sizes, further_counts
from manylora.server.kernels.cuda.replay.captured import Captured
from manylora.server.kernels.cuda.replay.graphs import CudaGraphs


class FixedCaptured:
    """Steps of any rows; see :class:`Capturing`."""

    def __init__(self, graphs: CudaGraphs) -> None:
        self._captured = Captured(graphs, 0)

    @property
    def num_failed(self) -> int:
        return self._captured.num_failed

    @staticmethod
    def sizes(rows: int, context: int) -> list[tuple[int, int]]:
        """How long contexts are is nothing to these graphs."""
        return [(n, min(1, context)) for n in decode_sizes(rows)]

    @staticmethod
    def chunks(rows: int, sequences: int, context: int) -> list[list[int]]:
        """Those that steps of so many sequences with a row each have not captured."""
        return further_counts(rows, sequences, context)

    def restart(self) -> None:
        self._captured.restart()

    def seal(self) -> None:
        self._captured.seal()
