"""Steps of several adapters together on one base: forward and backward over the batches of all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.template import IGNORED
from manylora.adapters.training.decoder.batch import Packed, learned_of, lengths_of, without_padding
from manylora.adapters.training.decoder.decoder import FusedDecoder, scores
from manylora.adapters.training.jobs.multi_lora import Rows, adapted
from manylora.adapters.training.model.forward import learned_ids, learned_scores, pad_right
from manylora.adapters.training.model.pairs import Pair

Batch = dict[str, Tensor]  # as TRL collates one


@dataclass(frozen=True, slots=True)
class Taken:
    """What one adapter's share of a step measured."""

    loss: float  # mean over its learned tokens
    right: int  # learned tokens that were the likeliest
    learned: int
    tokens: int


class SharedSteps(Protocol):
    """Forward and backward of several adapters at once."""

    def take(self, batches: Sequence[Batch | None]) -> dict[int, Taken]:
        """Gradients of every adapter that has a batch, each from the mean loss of its own."""
        ...

    def score(self, index: int, items: Sequence[Item]) -> tuple[float, float]:
        """Loss and token accuracy of one adapter over all learned tokens of ``items``."""
        ...


@contextmanager
def shared_steps(
    base: Any, adapters: Sequence[Mapping[str, Pair]], decoder: FusedDecoder | None, pad_id: int
) -> Iterator[SharedSteps]:
    """Steps through ``decoder`` where there is one, else the base's modules, changed within the block."""
    if decoder is not None:
        yield DecodedSteps(decoder)
        return
    rows = Rows()
    with adapted(base, adapters, rows):
        yield ModuleSteps(base, rows, pad_id)


class DecodedSteps:
    """Steps by the fused decoder: the rows of all adapters one behind the other, without padding."""

    def __init__(self, decoder: FusedDecoder) -> None:
        self._decoder = decoder

    def take(self, batches: Sequence[Batch | None]) -> dict[int, Taken]:
        device = self._decoder.device
        ids: list[Tensor] = []
        labels: list[Tensor] = []
        lengths: list[int] = []
        slices: list[slice] = []
        end = 0
        for batch in batches:
            start = end
            if batch is not None:
                ids.append(without_padding(batch["input_ids"], batch))
                labels.append(without_padding(batch["labels"], batch))
                lengths += lengths_of(batch)
                end += len(ids[-1])
            slices.append(slice(start, end))
        learned = learned_of(torch.cat(labels).to(device), lengths)
        edges = torch.tensor([part.start for part in slices] + [end], device=device)
        own = torch.searchsorted(learned.rows, edges).tolist()
        counts = [high - low for low, high in itertools.pairwise(own)]
        shares = torch.cat([torch.full((count,), 1 / max(1, count)) for count in counts])
        packed = Packed(torch.cat(ids).to(device), tuple(lengths), tuple(slices))
        losses = self._decoder.losses(packed, learned, shares.to(device))
        losses.total.backward()
        taken = {}
        for index, batch in enumerate(batches):
            part = slice(own[index], own[index + 1])
            if batch is not None:
                loss = float(losses.each[part].sum()) / max(1, counts[index])
                tokens = slices[index].stop - slices[index].start
                taken[index] = Taken(loss, int(losses.right[part].sum()), counts[index], tokens)
        return taken

    def score(self, index: int, items: Sequence[Item]) -> tuple[float, float]:
        return scores(self._decoder, [learned_ids(item) for item in items], adapter=index)


class ModuleSteps:
    """Steps by the base's modules, whose linear layers know the rows of each adapter."""

    def __init__(self, base: Any, rows: Rows, pad_id: int) -> None:
        self._base = base
        self._rows = rows
        self._pad_id = pad_id

    def take(self, batches: Sequence[Batch | None]) -> dict[int, Taken]:
        inputs, labels = self._join(batches)
        device = next(self._base.parameters()).device
        targets = labels[:, 1:]
        columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
        fields = {name: value.to(device) for name, value in inputs.items()}
        logits = self._base(**fields, use_cache=False, logits_to_keep=columns.to(device)).logits.float()
        chosen = targets[:, columns].to(device)
        losses, counts = {}, {}
        for index, batch in enumerate(batches):
            if batch is None:
                continue
            rows = self._rows.slices[index]
            own, wanted = logits[rows], chosen[rows]
            learned = wanted != IGNORED
            total = functional.cross_entropy(
                own.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            losses[index] = total / learned.sum().clamp(min=1)
            right = int(((own.argmax(-1) == wanted) & learned).sum())
            counts[index] = right, int(learned.sum()), int(inputs["attention_mask"][rows].sum())
        torch.stack(list(losses.values())).sum().backward()
        return {index: Taken(float(loss.detach()), *counts[index]) for index, loss in losses.items()}

    def score(self, index: int, items: Sequence[Item]) -> tuple[float, float]:
        count = len(self._rows.slices)
        self._rows.slices = [slice(0, None) if other == index else slice(0, 0) for other in range(count)]
        return learned_scores(self._base, items, self._pad_id)

    def _join(self, batches: Sequence[Batch | None]) -> tuple[Batch, Tensor]:
        """The rows of all batches in one, padded to the longest."""
        ids: list[list[int]] = []
        labels: list[list[int]] = []
        self._rows.slices = []
        for batch in batches:
            start = len(ids)
            if batch is not None:
                lengths = batch["attention_mask"].sum(1).tolist()
                ids += [row[:n] for row, n in zip(batch["input_ids"].tolist(), lengths, strict=True)]
                labels += [row[:n] for row, n in zip(batch["labels"].tolist(), lengths, strict=True)]
            self._rows.slices.append(slice(start, len(ids)))
        padded, mask = pad_right(ids, self._pad_id)
        targets, _ = pad_right(labels, IGNORED)
        return {"input_ids": padded, "attention_mask": mask}, targets
