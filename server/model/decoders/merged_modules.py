"""Merged weights for the generic decoder: layers that take their places in the model's tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from manylora.adapters.base_models.norms import norm_with


class MergedModules:
    """Merged weights as layers that stand in the model's tree while a step runs with them."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model
        self._names = names
        self._layers: dict[str, nn.Module] = {}
        self.nbytes = 0

    def put(
        self,
        modules: Sequence[int],
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
    ) -> None:
        for module, weight, bias in zip(modules, weights, biases, strict=True):
            name = self._names[module]
            made = _linear(weight) if weight.dim() > 1 else norm_with(self._model.get_submodule(name), weight)
            if bias is not None:
                made.bias = nn.Parameter(bias, requires_grad=False)
            self._layers[self._names[module]] = made
            self.nbytes += weight.numel() * weight.element_size()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model's own layers are back afterwards, whatever happened."""
        own = {name: self._model.get_submodule(name) for name in self._layers}
        try:
            for name, linear in self._layers.items():
                self._model.set_submodule(name, linear)
            yield
        finally:
            for name, module in own.items():
                self._model.set_submodule(name, module)


def _linear(weight: torch.Tensor) -> nn.Linear:
    """A linear layer of ``weight`` [out, in], without a bias."""
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
