"""One forward and backward pass over the batches of several runs on one base."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from manylora.adapters.training.decoder.batch import Learned, Packed
from manylora.adapters.training.decoder.decoder import FusedDecoder
from manylora.adapters.training.decoder.head import TokenLosses
from manylora.adapters.training.decoder.layer import Layer
from manylora.adapters.training.decoder.projection import Projection
from manylora.adapters.training.jobs.turns import Turns

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """What one run brings to a step."""

    decoder: FusedDecoder
    batch: Packed
    learned: Learned
    shares: Tensor  # float32 [learned]: what each loss is multiplied by in the total


@dataclass(frozen=True, slots=True)
class Done:
    """What one run gets of a step."""

    losses: TokenLosses  # whose total has no graph
    gradients: tuple[Tensor, ...]  # of :func:`matrices`, of the total


def matrices(decoder: FusedDecoder) -> list[Tensor]:
    """A and B of all adapters of a decoder."""
    return [matrix for layer in decoder.layers for matrix in layer.parameters]


class JointSteps:
    """Takes the steps of several runs as one."""

    def __init__(self) -> None:
        self._decoders: tuple[FusedDecoder, ...] = ()
        self._joined: FusedDecoder | None = None
        self._too_large: tuple[FusedDecoder, ...] = ()  # whose batches do not fit into memory in one pass

    def clear(self) -> None:
        """Let go of the runs, and with them of the base."""
        self._decoders, self._joined, self._too_large = (), None, ()

    def take(self, parts: Sequence[Part | None]) -> list[Done | None]:
        """The losses and gradients of each part; None where a run has to take its step by itself.

        Alone it does, so that it is exactly what it is without others.
        """
        given = [part for part in parts if part is not None]
        decoders = tuple(part.decoder for part in given)
        if len(given) < 2 or _are_same(decoders, self._too_large):
            self._decoders, self._joined = (), None
            return [None] * len(parts)
        try:
            done = iter(self.together(given, self._decoder(decoders)))
        except (MemoryError, torch.OutOfMemoryError):
            logger.warning("one pass over the batches of %s runs does not fit into memory", len(given))
            self._too_large = decoders
            return [None] * len(parts)
        return [None if part is None else next(done) for part in parts]

    def together(self, parts: Sequence[Part], decoder: FusedDecoder) -> list[Done]:
        """One pass through ``decoder``, which has the adapters of all parts in their order."""
        ends = _ends([len(part.batch.ids) for part in parts])
        slices = tuple(slice(low, high) for low, high in zip([0, *ends], ends, strict=False))
        batch = Packed(
            torch.cat([part.batch.ids for part in parts]),
            tuple(length for part in parts for length in part.batch.lengths),
            slices,
        )
        learned = Learned(
            torch.cat([part.learned.rows + own.start for part, own in zip(parts, slices, strict=True)]),
            torch.cat([part.learned.targets for part in parts]),
        )
        losses = decoder.losses(batch, learned, torch.cat([part.shares for part in parts]))
        own = [matrices(part.decoder) for part in parts]
        gradients = torch.autograd.grad(losses.total, [matrix for each in own for matrix in each])
        counts = [len(part.shares) for part in parts]
        cut = _ends([len(each) for each in own])
        return [
            Done(TokenLosses((each * part.shares).sum(), each, right), tuple(gradients[low:high]))
            for part, each, right, low, high in zip(
                parts, losses.each.split(counts), losses.right.split(counts), [0, *cut], cut, strict=False
            )
        ]

    def _decoder(self, decoders: tuple[FusedDecoder, ...]) -> FusedDecoder:
        """One with the adapters of all, on the weights of the first, which are those of all."""
        if self._joined is None or not _are_same(decoders, self._decoders):
            layers = zip(*(decoder.layers for decoder in decoders), strict=True)
            self._joined = replace(decoders[0], layers=tuple(_layer(each) for each in layers))
            self._decoders = decoders
        return self._joined


class JointLosses:
    """What a run asks for the losses of a batch in training; the others' batches go along."""

    def __init__(self, decoder: FusedDecoder, turns: Turns) -> None:
        self._decoder, self._turns = decoder, turns
        first = decoder.layers[0].projections
        self._is_apart = decoder.is_checkpointed or any(each.dropout > 0 for each in first)

    def __call__(self, batch: Packed, learned: Learned, shares: Tensor) -> TokenLosses:
        """Losses as of :meth:`FusedDecoder.losses` in training."""
        part = None if self._is_apart else Part(self._decoder, batch, learned, shares)
        done: Done | None = self._turns.meet(part)
        if done is None:
            return self._decoder.losses(batch, learned, shares, drops=True)
        given: Any = _Given.apply
        total = given(done.losses.total, done.gradients, *matrices(self._decoder))
        return TokenLosses(total, done.losses.each, done.losses.right)


class _Given(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *_matrices: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found, ctx.gradients = ctx.gradients, ()
        return None, None, *(grads[0] * gradient for gradient in found)


def _are_same(some: Sequence[FusedDecoder], others: Sequence[FusedDecoder]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _layer(layers: Sequence[Layer]) -> Layer:
    return replace(
        layers[0],
        qkv=_projection([layer.qkv for layer in layers]),
        output=_projection([layer.output for layer in layers]),
        wide=_projection([layer.wide for layer in layers]),
        down=_projection([layer.down for layer in layers]),
    )


def _projection(projections: Sequence[Projection]) -> Projection:
    return replace(projections[0], members=tuple(each.members[0] for each in projections))


def _ends(counts: Sequence[int]) -> list[int]:
    found, at = [], 0
    for count in counts:
        at += count
        found.append(at)
    return found
