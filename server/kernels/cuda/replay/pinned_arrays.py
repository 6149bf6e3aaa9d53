"""Arrays that the host fills and the device reads at addresses that never change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_ALIGN = 64  # bytes

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # shape and type


class Mirror:
    """Named arrays on the host, and tensors of the same names on the device, sent by one copy."""

    def __init__(self, fields: Fields, device: torch.device) -> None:
        starts, size = {}, 0
        for name, (shape, dtype) in fields.items():
            starts[name] = size
            size += -(-math.prod(shape) * dtype.itemsize // _ALIGN) * _ALIGN
        on_gpu = device.type == "cuda"
        self._here = torch.zeros(size, dtype=torch.uint8, pin_memory=on_gpu)
        self._there = torch.zeros(size, dtype=torch.uint8, device=device)
        self._sent = torch.cuda.Event() if on_gpu else None

        def part(memory: torch.Tensor, name: str) -> torch.Tensor:
            shape, dtype = fields[name]
            end = starts[name] + math.prod(shape) * dtype.itemsize
            return memory[starts[name] : end].view(dtype).view(shape)

        self.host: Mapping[str, np.ndarray[Any, Any]] = {
            name: part(self._here, name).numpy() for name in fields
        }
        self.device: Mapping[str, torch.Tensor] = {name: part(self._there, name) for name in fields}

    def wait(self) -> None:
        """Wait until the last copy has been made; only then may the arrays be changed."""
        if self._sent is not None:
            self._sent.synchronize()

    def send(self) -> None:
        """Copy the arrays to the device, behind what it is doing."""
        self._there.copy_(self._here, non_blocking=True)
        if self._sent is not None:
            self._sent.record()
