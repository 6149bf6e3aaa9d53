"""What rank 0 tells the others of a step: as little as it can, in the order of the steps."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from manylora.server.kernels.inputs import AdapterPages, EmbeddedRows, LoraInputs, StepInputs
from manylora.server.kernels.weights import MergedWeights


@dataclass(frozen=True)
class StepMessage:
    """A step as it is sent. Adapters and merged copies are numbers."""

    inputs: StepInputs  # without adapters, tensors and merged copies
    lora: LoraInputs | None  # without adapters
    adapters: tuple[int, ...]
    new: dict[int, AdapterPages]  # adapters that are named for the first time
    gone: list[int]  # that are named no more
    embedded: tuple[np.ndarray, np.ndarray] | None  # rows, and their embeddings in fp32
    hidden: bool  # whether what the head is applied to is wanted
    merged: int | None


@dataclass
class Encoder:
    """Makes messages of steps. One thread calls it."""

    _numbers: weakref.WeakKeyDictionary[AdapterPages, int] = field(default_factory=weakref.WeakKeyDictionary)
    _gone: deque[int] = field(default_factory=deque)  # appended to wherever garbage is collected
    _next: int = 0

    def encode(self, inputs: StepInputs, merged: int | None) -> StepMessage:
        """The message of a step that runs on the merged copy of that number."""
        lora, new = inputs.lora, {}
        adapters = () if lora is None else lora.adapters
        for pages in adapters:
            if pages not in self._numbers:
                self._next += 1
                self._numbers[pages] = self._next
                weakref.finalize(pages, self._gone.append, self._next).atexit = False
                new[self._next] = replace(pages, vocabulary=None, prompt=None)  # these are rank 0's
        given = inputs.embedded
        return StepMessage(
            inputs=replace(inputs, lora=None, embedded=None, hidden=None, states=None, merged=None),
            lora=None if lora is None else replace(lora, adapters=()),
            adapters=tuple(self._numbers[pages] for pages in adapters),
            new=new,
            gone=[self._gone.popleft() for _ in range(len(self._gone))],
            embedded=None if given is None else (given.rows, given.values.float().cpu().numpy()),
            hidden=inputs.hidden is not None,
            merged=merged,
        )


class Decoder:
    """Makes steps of messages, in the order in which they were sent."""

    def __init__(self, like: torch.Tensor) -> None:
        """``like`` [.., D] is what hidden states are like."""
        self._like = like
        self._pages: dict[int, AdapterPages] = {}
        self._last: LoraInputs | None = None

    def decode(self, message: StepMessage, merged: MergedWeights | None) -> StepInputs:
        """The step, which runs on ``merged``."""
        self._pages.update(message.new)
        for number in message.gone:
            del self._pages[number]
        lora = None
        if message.lora is not None:
            lora = replace(message.lora, adapters=tuple(self._pages[n] for n in message.adapters))
        embedded, hidden = None, None
        if message.embedded is not None:
            rows, values = message.embedded
            embedded = EmbeddedRows(rows, torch.from_numpy(values).to(self._like.device))
        if message.hidden:
            hidden = self._like.new_empty(len(message.inputs.logits_rows), self._like.shape[-1])
        return replace(message.inputs, lora=lora, embedded=embedded, hidden=hidden, merged=merged)
