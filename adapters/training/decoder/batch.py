"""Sequences of a batch one behind the other, without padding, and which of them attention takes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from manylora.adapters.training.data.template import IGNORED

ALONE = 512  # a sequence longer than this is attended to by itself
LEAST_FILLED = 0.5  # a sequence joins others that are at most twice as long


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences that attention takes together, each filled up at its end to the longest of them."""

    count: int  # sequences
    length: int  # of the longest
    tokens: Tensor  # int64 [t]: where their tokens are in the packed batch
    places: Tensor  # int64 [t]: where they go among the count * length places


@dataclass(frozen=True)
class Packed:
    """A batch of sequences in one row of tokens."""

    ids: Tensor  # int64 [tokens]
    lengths: tuple[int, ...]  # of the sequences, in their order
    slices: tuple[slice, ...]  # tokens of each adapter; they follow each other and cover all
    positions: Tensor = field(init=False)  # int64 [tokens], from 0 in every sequence
    buckets: tuple[Bucket, ...] = field(init=False)

    def __post_init__(self) -> None:
        device = self.ids.device
        positions = torch.cat([torch.arange(length) for length in self.lengths])
        object.__setattr__(self, "positions", positions.to(device))
        object.__setattr__(self, "buckets", tuple(_buckets(self.lengths, device)))


def bucket_members(lengths: Sequence[int]) -> list[list[int]]:
    """Which sequences are attended to together, so that what is filled up stays below what is there."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[groups[-1][0]] if groups else 0
        fits = groups and longest <= ALONE and lengths[index] >= LEAST_FILLED * longest
        if fits:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [sorted(group) for group in groups]


def _buckets(lengths: Sequence[int], device: torch.device) -> list[Bucket]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    found = []
    for group in bucket_members(lengths):
        longest = max(lengths[index] for index in group)
        tokens = torch.cat([torch.arange(starts[i], starts[i] + lengths[i]) for i in group])
        places = torch.cat([torch.arange(lengths[i]) + n * longest for n, i in enumerate(group)])
        found.append(Bucket(len(group), longest, tokens.to(device), places.to(device)))
    return found


@dataclass(frozen=True, slots=True)
class Learned:
    """What is learned of a packed batch."""

    rows: Tensor  # int64 [learned]: the tokens whose next token is learned
    targets: Tensor  # int64 [learned]: those next tokens


def learned_of(labels: Tensor, lengths: Sequence[int]) -> Learned:
    """``labels`` int64 [tokens] of packed sequences; the first of a sequence is predicted by nothing."""
    following = torch.cat([labels[1:], labels.new_full((1,), IGNORED)])
    ends = torch.tensor(lengths, device=labels.device).cumsum(0) - 1
    following[ends] = IGNORED
    rows = (following != IGNORED).nonzero().squeeze(1)
    return Learned(rows, following[rows])


def lengths_of(fields: dict[str, Tensor]) -> tuple[int, ...]:
    """Lengths of the sequences in a collated batch: of padded rows, or of one row of packed ones."""
    if "attention_mask" in fields:
        return tuple(fields["attention_mask"].sum(1).tolist())
    starts = (fields["position_ids"].flatten() == 0).nonzero().squeeze(1)
    edges = torch.cat([starts, starts.new_tensor([fields["position_ids"].numel()])])
    return tuple(edges.diff().tolist())


def without_padding(values: Tensor, fields: dict[str, Tensor]) -> Tensor:
    """[rows, length] -> [tokens]: what is no padding."""
    mask = fields.get("attention_mask")
    return values.flatten() if mask is None else values[mask.bool()]


def per_row(
    each: Tensor, right: Tensor, learned: Learned, lengths: Sequence[int], rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By row of the collated batch: right ones of the learned tokens, learned tokens, tokens, sum of losses.

    Args:
        each: float32 [learned]: losses.
        right: bool [learned]
        rows: as many as there are sequences, or one that holds all.
    """
    widths = torch.tensor(lengths if rows == len(lengths) else [sum(lengths)], device=each.device)
    whose = torch.arange(rows, device=each.device).repeat_interleave(widths)[learned.rows]
    counts = [
        torch.zeros(rows, device=each.device).index_add_(0, whose, values.float())
        for values in (right, torch.ones_like(each), each.detach())
    ]
    return counts[0], counts[1], widths, counts[2]
