"""A model computing more exactly than it is stored, and one whose values are rounded once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Unpack = Callable[[nn.Module], Tensor | None]  # the weight [out, in] that a layer's codes stand for


def plain(_: nn.Module) -> None:
    """Unpack nothing: no layer of the model is quantized."""


@contextmanager
def widened(model: nn.Module, unpack: Unpack = plain) -> Iterator[None]:
    """Within the block ``model`` computes in float32, with the values its weights have as they are stored.

    A module's float32 copies are there while it runs only: the whole model in float32 would take twice the
    memory of one in 16 bits. A quantized layer multiplies by the weight that ``unpack`` gives for it, which
    is None for every other module.
    """
    with ExitStack() as stack:
        for module in list(model.modules()):
            if unpack(module) is not None:
                stack.enter_context(_unpacked(module, unpack))
            else:
                for handle in widen(module):
                    stack.callback(handle.remove)
        yield


@contextmanager
def _unpacked(module: Any, unpack: Unpack) -> Iterator[None]:
    def forward(x: Tensor) -> Tensor:
        weight = unpack(module)
        assert weight is not None
        return F.linear(x, weight.to(x.dtype), None if module.bias is None else module.bias.to(x.dtype))

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def widen(module: nn.Module) -> list[RemovableHandle]:
    """Have a module compute with float32 copies of its own weights, until the hooks are removed."""
    own = [p for p in module.parameters(recurse=False) if p.is_floating_point() and p.dtype != torch.float32]
    stored: list[Tensor] = []

    def before(*_: object) -> None:
        stored[:] = [parameter.data for parameter in own]
        for parameter in own:
            parameter.data = parameter.data.float()

    def after(*_: object) -> None:
        for parameter, data in zip(own, stored, strict=True):
            parameter.data = data
        stored.clear()

    if not own:
        return []
    return [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True),
    ]


@contextmanager
def nudged(model: nn.Module, amount: float, seed: int = 0) -> Iterator[None]:
    """Within the block the inputs of every innermost module are off by up to ``amount`` of themselves.

    That is what computing in few bits does, with ``amount`` one rounding; ``seed`` draws by how much.
    """
    generators: dict[torch.device, torch.Generator] = {}

    def nudge(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            return None
        x = args[0]
        generator = generators.setdefault(x.device, torch.Generator(x.device).manual_seed(seed))
        noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=torch.float32)
        return ((x * (1 + amount * (2 * noise - 1))).to(x.dtype), *args[1:]), kwargs

    with ExitStack() as stack:
        for module in list(model.modules()):
            if not list(module.children()):
                stack.callback(module.register_forward_pre_hook(nudge, with_kwargs=True).remove)
        yield
