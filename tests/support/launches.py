"""Records what a step asks of a device, to compare steps that are to be replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Trace(TorchDispatchMode):
    """What is asked of the device, in order; refuses what makes the host wait for it or depends on data."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "unique",
        "equal",
        "is_nonzero",
        "lift_fresh",
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[object, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(f"aten.{word}." in name for word in self.FORBIDDEN), name
        self.calls.append((name, [_seen(a) for a in args], sorted((kwargs or {}).items(), key=str)))
        return func(*args, **(kwargs or {}))

    def kernel(self, name: str) -> Any:
        """A stand-in for a kernel, that only notes how it was launched."""
        trace = self

        class Kernel:
            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                return lambda *args, **options: trace.calls.append(
                    (name, grid, [_seen(a) for a in args], sorted(options.items(), key=str))
                )

        return Kernel()


def _seen(value: object) -> object:
    """What of an argument is fixed once a graph is captured."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return [_seen(v) for v in value]
    return value
