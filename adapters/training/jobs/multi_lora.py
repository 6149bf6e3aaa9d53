"""One frozen base under several adapters that train at once: each adapter on its own rows of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from manylora.adapters.training.model.pairs import Pair


@dataclass
class Rows:
    """Which rows of the batch belong to which adapter; set before every forward pass."""

    slices: list[slice] = field(default_factory=list)  # by adapter; empty for one that takes no part


class MultiLoraLinear(nn.Module):
    """``y = W x``, and on the rows of adapter j ``+ s_j B_j (A_j x)``, as PEFT computes it for one."""

    def __init__(self, base: nn.Module, pairs: Sequence[Pair | None], rows: Rows) -> None:
        super().__init__()
        self.base = base
        self._pairs = pairs  # by adapter; None where it leaves the module alone
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """The module's output under each adapter on its rows: [rows, length, in] -> [rows, length, out]."""
        y: Tensor = self.base(x)
        parts, end = [], 0
        for rows, pair in zip(self._rows.slices, self._pairs, strict=True):
            if rows.start == rows.stop:
                continue
            assert rows.start == end, "the adapters' rows follow each other"
            end = rows.stop
            own = y[rows]
            if pair is not None:
                delta = functional.linear(functional.linear(x[rows].to(pair.a.dtype), pair.a), pair.b)
                own = self._adapted(own, delta * pair.scaling, pair).to(y.dtype)
            parts.append(own)
        return torch.cat(parts)

    def _adapted(self, y: Tensor, delta: Tensor, pair: Pair) -> Tensor:
        """The base's output with what an adapter adds; with DoRA, all but the bias is multiplied."""
        if pair.magnitude is None:
            return y + delta
        gain = pair.magnitude / self._norm(pair)
        bias = getattr(self.base, "bias", None)
        if bias is None:
            return gain * (y + delta)
        changed: Tensor = gain * (y - bias + delta) + bias
        return changed

    @torch.no_grad()
    def _norm(self, pair: Pair) -> Tensor:
        """Of the rows of W + s B A, in the backward pass a constant as in PEFT: [out] float32."""
        weight = dequantize_module_weight(self.base).to(pair.a.dtype)
        if isinstance(self.base, Conv1D):
            weight = weight.T
        changed = torch.addmm(weight, pair.b, pair.a, alpha=pair.scaling)
        norm: Tensor = torch.linalg.vector_norm(changed, dim=1)
        return norm


@contextmanager
def adapted(model: Any, adapters: Sequence[Mapping[str, Pair]], rows: Rows) -> Iterator[None]:
    """Within the block ``model`` computes with ``adapters`` (module name -> matrices), each on its rows."""
    names = dict.fromkeys(name for adapter in adapters for name in adapter)
    before = {name: model.get_submodule(name) for name in names}
    try:
        for name, module in before.items():
            pairs = [adapter.get(name) for adapter in adapters]
            model.set_submodule(name, MultiLoraLinear(module, pairs, rows))
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)
