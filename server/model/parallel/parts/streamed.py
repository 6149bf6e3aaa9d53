"""The original model with one matrix in memory at a time: what a divided base is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from manylora.server.model.loading.long_rope import settle_factors


@contextmanager
def streamed(
    skeleton: Any, config: Any, stored: Mapping[str, torch.Tensor], *, dtype: torch.dtype, max_len: int
) -> Iterator[Any]:
    """Within the block, the model of ``skeleton`` on the CPU: each matrix is read when its module runs.

    It stays until another's turn comes, so that hooks that are registered within the block find it. Norms and
    biases are there all the time.

    Args:
        skeleton: the model on the meta device.
        config: its transformers config.
        stored: the tensors of its state dict.
        dtype: it computes in.
        max_len: of the positions that rotary factors are chosen for.
    """
    nothing = torch.zeros((), dtype=dtype)
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    model, _ = type(skeleton).from_pretrained(
        None,
        config=config,
        dtype=dtype,
        state_dict={
            name: stored[name].to(dtype) if len(shape) < _MATRIX else nothing.expand(shape)
            for name, shape in shapes.items()
        },
        generation_config=GenerationConfig(),
        output_loading_info=True,
    )
    settle_factors(model, max_len)
    with _Stream(stored, dtype).through(model.eval().requires_grad_(False)):
        yield model


_MATRIX = 2  # dimensions


class _Stream:
    """Puts the matrices of one module after the other in their places."""

    def __init__(self, stored: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        self._stored = stored
        self._dtype = dtype
        self._there: list[tuple[nn.Parameter, torch.Tensor]] = []  # with what stood there before

    @contextmanager
    def through(self, model: nn.Module) -> Iterator[None]:
        """Hooks on the modules of ``model`` that have matrices."""
        handles = []
        for name, module in model.named_modules():
            own = {n: p for n, p in module.named_parameters(recurse=False) if p.dim() >= _MATRIX}
            if own:
                handles.append(module.register_forward_pre_hook(self._bringing(name, own)))
        try:
            yield
        finally:
            self._take_away()
            for handle in handles:
                handle.remove()

    def _bringing(self, module: str, own: Mapping[str, nn.Parameter]) -> Any:
        def bring(*_: object) -> None:
            self._take_away()
            for name, parameter in own.items():
                self._there.append((parameter, parameter.data))
                parameter.data = self._stored[f"{module}.{name}"].to(self._dtype)

        return bring

    def _take_away(self) -> None:
        for parameter, before in self._there:
            parameter.data = before
        self._there.clear()
