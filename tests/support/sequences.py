"""Sequences and page tables for tests that need no model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from collections.abc import Sequence as Seq

import numpy as np

from manylora.server.engine.clients import EVERYBODY, Client
from manylora.server.engine.sequence import ResolvedMix, SamplingParams, Sequence
from manylora.server.kernels.inputs import AdapterPages

_ids: Iterator[int] = itertools.count(1)


def make_sequence(
    prompt_ids: Seq[int],
    *,
    mix: ResolvedMix | None = None,
    salt: bytes = b"",
    index: int = 0,
    leader: Sequence | None = None,
    max_tokens: int = 8,
    client: Client = EVERYBODY,
    priority: int = 0,
    **params: object,
) -> Sequence:
    """A sequence with an id of its own; the base model unless ``mix`` is given."""
    return Sequence(
        next(_ids),
        tuple(prompt_ids),
        SamplingParams(max_tokens=max_tokens, **params),  # type: ignore[arg-type]
        ResolvedMix() if mix is None else mix,
        salt=salt,
        index=index,
        leader=leader,
        client=client,
        priority=priority,
    )


def mix_of(digest: bytes) -> ResolvedMix:
    """A mix of one adapter that is told apart by ``digest`` only."""
    pages = AdapterPages(digest.hex(), np.zeros(1, np.int64), np.zeros(1, np.int32))
    return ResolvedMix(((pages, 1.0),), digest)
