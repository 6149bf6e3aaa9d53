"""Copies of adapters to the device: beside its computation where it has streams, else at once.

Two things could go wrong where copies have a stream of their own. A page could be read before it is there: so
:meth:`Upload.send` returns once it is, and only then may anybody refer to it. And a page could be written
while a step that was launched long ago still reads what was there before: so a copy begins behind everything
that was launched when it was asked for. Whoever gives a page back has launched all that reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Protocol

import torch

STAGING = 8 << 20  # bytes of a piece; two of them are on their way at a time


class Upload(Protocol):
    """Sends memory of the host to the device."""

    def send(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy ``source`` to ``target``, both flat and of one dtype; it is there when this returns.

        Any thread may call.
        """


def upload_for(device: torch.device) -> Upload:
    """The best way to ``device``."""
    return StagedUpload(CudaLane(device)) if device.type == "cuda" else DirectUpload()


class DirectUpload:
    """One plain copy."""

    def send(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """See :class:`Upload`."""
        target.copy_(source)


class Lane(Protocol):
    """A stream of copies beside the stream that computes."""

    def staging(self, nbytes: int) -> torch.Tensor:
        """Host memory [nbytes] uint8 from which copies are made without holding up anybody."""

    def follow(self) -> None:
        """What is copied from now on waits for all that has been launched to compute until now."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
        """Begin to copy ``source``, which is staging memory; what is returned waits until it is done."""


class StagedUpload:
    """Copies piece by piece through two buffers of pinned memory: one is filled while the other is sent.

    The device can't read the host's ordinary memory by itself: the driver would copy it first, and may hold
    up all streams meanwhile.
    """

    def __init__(self, lane: Lane, piece: int = STAGING) -> None:
        """``piece``: bytes of a buffer."""
        self._lane = lane
        self._piece = piece
        self._lock = Lock()  # the buffers are one caller's at a time
        self._buffers: list[torch.Tensor] = []

    def send(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """See :class:`Upload`."""
        with self._lock, torch.inference_mode():
            if not self._buffers:
                self._buffers = [self._lane.staging(self._piece) for _ in range(2)]
            self._lane.follow()
            on_their_way: list[Callable[[], None]] = []
            step = self._piece // source.element_size()
            for number, start in enumerate(range(0, source.numel(), step)):
                if len(on_their_way) == len(self._buffers):
                    on_their_way.pop(0)()
                part = source[start : start + step]
                buffer = self._buffers[number % 2][: part.nbytes].view(source.dtype)
                buffer.copy_(part)
                on_their_way.append(self._lane.copy(buffer, target[start : start + step]))
            for wait in on_their_way:
                wait()


class CudaLane:
    """A CUDA stream beside the one that every thread computes on: the device's default stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def staging(self, nbytes: int) -> torch.Tensor:
        """See :class:`Lane`."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def follow(self) -> None:
        """See :class:`Lane`."""
        self._stream.wait_event(torch.cuda.default_stream(self._device).record_event())

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
        """See :class:`Lane`."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        # A thread that waits sleeps: spinning would take a core from the engine's thread.
        done = torch.cuda.Event(blocking=True)
        done.record(self._stream)
        wait: Callable[[], None] = done.synchronize
        return wait
