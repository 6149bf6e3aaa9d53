"""What a check runs two models on, and how it puts an adapter beside a module without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]  # (module, inputs, output) -> new output


def random_prompts(model: Any, lengths: Sequence[int]) -> list[Tensor]:
    """Random token ids for ``model``, int64 [length] for each of ``lengths``; always the same ones."""
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in lengths]


@contextmanager
def hooked(model: Any, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Within the block the outputs of the named modules of ``model`` go through ``hooks``."""
    handles = [model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
