"""Many LoRA adapters, and weighted mixes of them, in one batch on one base model.

These names are for programs, and keep their meaning from version to version:

- :class:`LLM`: the engine in this process, for batches;
- :class:`Client`: manages the adapters of a running server;
- :func:`train`, :func:`estimate`: make an adapter, and tell what that takes;
- :func:`compose`, :func:`merge`, :func:`compare`: make one of several adapters, make a standalone model, and
  tell how models differ.

Everything in ``manylora.server`` and ``manylora.adapters`` is internal: it may change at any time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manylora.answers import Choice, Completion, Score
    from manylora.llm import LLM
    from manylora.offline import compare, compose, estimate, merge, train
    from manylora.server.client.client import Client

__all__ = [
    "LLM",
    "Choice",
    "Client",
    "Completion",
    "Score",
    "compare",
    "compose",
    "estimate",
    "merge",
    "train",
]

# Where each name comes from: imported when it is first asked for, since some bring torch.
_HOMES = {
    "LLM": "manylora.llm",
    "Choice": "manylora.answers",
    "Client": "manylora.server.client.client",
    "Completion": "manylora.answers",
    "Score": "manylora.answers",
    "compare": "manylora.offline",
    "compose": "manylora.offline",
    "estimate": "manylora.offline",
    "merge": "manylora.offline",
    "train": "manylora.offline",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'manylora' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
