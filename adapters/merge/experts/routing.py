"""Which experts each token takes in one run of a model, and runs in which it takes the same ones.

Where two experts are nearly as good, a rounding decides between them, and the output jumps. Models are
compared on the same choice, so that a difference between them is one of their weights. The router is not
compared: no adapter that is merged changes it, and its tensor is copied as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

Choice = tuple[Tensor, Tensor]  # each row's experts [T, k] and their shares [T, k]


class Routing:
    """The choices of one run, in the order of its calls."""

    def __init__(self, modules: Collection[str]) -> None:
        """``modules``: the names of those that hold experts and are given the choice; none in most models."""
        self._modules = modules
        self._choices: dict[str, list[Choice]] = {name: [] for name in modules}

    @contextmanager
    def recorded(self, model: Any) -> Iterator[None]:
        """Within the block ``model`` runs as it does, and what it chooses is kept."""

        def keep(name: str, _module: Any, args: tuple[Tensor, ...]) -> None:
            self._choices[name].append((args[1], args[2]))

        with self._hooked(model, keep):
            yield

    @contextmanager
    def followed(self, model: Any) -> Iterator[None]:
        """Within the block ``model``, given the same tokens, takes what was chosen before."""
        left = {name: deque(choices) for name, choices in self._choices.items()}

        def take(name: str, _module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0], *left[name].popleft())

        with self._hooked(model, take):
            yield

    @contextmanager
    def _hooked(self, model: Any, hook: Callable[..., Any]) -> Iterator[None]:
        handles = [
            model.get_submodule(name).register_forward_pre_hook(partial(hook, name)) for name in self._modules
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
