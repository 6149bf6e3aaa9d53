"""Counts the bytes of tensors while code runs: they have no memory, so models may be of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountedMemory(TorchDispatchMode):
    """While it is active, every tensor on a device is counted from its making until it is gone."""

    def __init__(self, device: str = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self._live: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {StorageWeakRef(t.untyped_storage()) for t in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if tensor.device.type == self._device:
                reference = StorageWeakRef(tensor.untyped_storage())
                if reference not in known:
                    self._live[reference] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, self.now)
        return result

    @property
    def now(self) -> int:
        """Bytes of what is there."""
        self._live = {ref: nbytes for ref, nbytes in self._live.items() if not ref.expired()}
        return sum(self._live.values())


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
