"""Merged weights for the generic decoder: linear layers that take their places in the model's tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


class MergedModules:
    """See :class:`MergedWeights`. Its layers stand in the model's tree while a step runs with them."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model
        self._names = names
        self._linears: dict[str, nn.Module] = {}
        self.nbytes = 0

    def put(
        self,
        modules: Sequence[int],
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
    ) -> None:
        for module, weight, bias in zip(modules, weights, biases, strict=True):
            outputs, inputs = weight.shape
            linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
            linear.weight = nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                linear.bias = nn.Parameter(bias, requires_grad=False)
            self._linears[self._names[module]] = linear
            self.nbytes += weight.numel() * weight.element_size()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model's own layers are back afterwards, whatever happened."""
        own = {name: self._model.get_submodule(name) for name in self._linears}
        try:
            for name, linear in self._linears.items():
                self._model.set_submodule(name, linear)
            yield
        finally:
            for name, module in own.items():
                self._model.set_submodule(name, module)
