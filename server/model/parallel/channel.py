"""Messages between rank 0 and one other rank, over a pair of sockets that nobody else has."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch


class Channel:
    """One end. Each direction is one thread's at a time. A closed other end is an EOFError or an OSError."""

    def __init__(self, descriptor: int) -> None:
        """``descriptor`` is taken over."""
        self._connection = Connection(descriptor)

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """This process's end, and a socket to be inherited by the other."""
        ours, theirs = socket.socketpair()
        return cls(ours.detach()), theirs

    def send(self, message: object) -> None:
        """Send any object of our own."""
        self._connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def receive(self) -> Any:
        """The next object. What comes is our own: the other end is a process that this server has started."""
        return pickle.loads(self._connection.recv_bytes())

    def send_tensors(self, tensors: Sequence[torch.Tensor | None]) -> None:
        """Send tensors as they lie in memory; None stays None."""
        self.send([None if t is None else (tuple(t.shape), t.dtype) for t in tensors])
        for tensor in tensors:
            if tensor is not None and tensor.numel():
                flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
                self._connection.send_bytes(flat.numpy().data)

    def receive_tensors(self) -> list[torch.Tensor | None]:
        """What :meth:`send_tensors` has sent, on the CPU."""
        found: list[torch.Tensor | None] = []
        for like in self.receive():
            found.append(None if like is None else self._tensor(*like))
        return found

    def close(self) -> None:
        """Close this end."""
        self._connection.close()

    def _tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            self._connection.recv_bytes_into(tensor.view(-1).view(torch.uint8).numpy().data)
        return tensor
