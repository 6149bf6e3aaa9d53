"""Products in bf16 on a processor without instructions for them: PyTorch takes minutes for seconds' work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default,
    }
)


def wide_products(device: torch.device) -> AbstractContextManager[object]:
    """Where ``device`` has no products in bf16, has them computed in float32 meanwhile and rounded once.

    They are sums in float32 that are rounded once anyway: only the order of the terms is another.
    """
    emulated = device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return _WideProducts() if emulated else nullcontext()  # type: ignore[no-untyped-call]


class _WideProducts(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        wide = (arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args)
        return func(*wide, **(kwargs or {})).bfloat16()
