"""The sums and joins of the ranks' parts, over torch.distributed: NCCL between GPUs, gloo on a CPU."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from manylora.server.model.parallel.parts.sharding import Sharding

_TIMEOUT = timedelta(minutes=10)  # that one rank waits for another; kernels may have to be compiled meanwhile
# Ranks are processes of one machine: what they open to each other is not for others.
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # by torch's version


class Group:
    """The ranks as one of them sees them; implements :class:`manylora.server.kernels.ranks.Ranks`."""

    def __init__(self, sharding: Sharding, device: torch.device, backend: str, meeting: Path) -> None:
        """Wait until all ranks are there.

        Args:
            sharding: this rank's.
            device: it computes on.
            backend: of torch.distributed, "nccl" or "gloo".
            meeting: a file to come, in which the ranks find each other.
        """
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, _LOOPBACK)
        self.count = sharding.count
        self.vocab_size = sharding.vocabulary
        self._rows = -(-sharding.vocabulary // sharding.count)  # of the head on every rank, but the last
        dist.init_process_group(
            backend,
            init_method=f"file://{meeting}",
            rank=sharding.rank,
            world_size=sharding.count,
            timeout=_TIMEOUT,
            device_id=device if backend == "nccl" else None,
        )

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See :class:`Ranks`."""
        dist.all_reduce(x)
        return x

    def join(self, logits: torch.Tensor) -> torch.Tensor:
        """See :class:`Ranks`."""
        own = F.pad(logits, (0, self._rows - logits.shape[1])).contiguous()
        every = own.new_empty(self.count, *own.shape)
        _gather(every.view(-1, self._rows), own)
        return every.transpose(0, 1).flatten(1)[:, : self.vocab_size]

    def leave(self) -> None:
        """Part from the others, who may be gone."""
        dist.destroy_process_group()
