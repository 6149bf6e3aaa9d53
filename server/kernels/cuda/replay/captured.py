"""What is captured on a CUDA device, as those who run the engine see it."""

from __future__ import annotations

from manylora.server.kernels.cuda.attention import PARTITION
from manylora.server.kernels.cuda.replay.buckets import buckets_up_to, chunk_counts
from manylora.server.kernels.cuda.replay.graphs import CudaGraphs

_LATE = 32  # graphs for rarer variants that are captured while requests run; each holds up the answers once


class Captured:
    """Decode steps and steps of chunks; see :class:`Capturing`."""

    def __init__(self, graphs: CudaGraphs, chunk_rows: int) -> None:
        """``chunk_rows``: of the largest step of chunks that is captured; 0: none are."""
        self._graphs = graphs
        self._chunk_rows = chunk_rows

    @property
    def num_failed(self) -> int:
        return self._graphs.num_failed

    @staticmethod
    def sizes(rows: int, context: int) -> list[tuple[int, int]]:
        return [(b.rows, min(b.partitions * PARTITION, context)) for b in buckets_up_to(rows, context)]

    def chunks(self, rows: int, sequences: int, context: int) -> list[list[int]]:
        return chunk_counts(min(rows, self._chunk_rows), sequences, context)

    def restart(self) -> None:
        self._graphs.restart()

    def seal(self) -> None:
        self._graphs.seal(_LATE)
