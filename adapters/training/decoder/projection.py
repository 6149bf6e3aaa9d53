"""Linear layers that read the same input as one product, with the adapters on them, and their gradients.

The A matrices of a group are one matrix, and its B matrices one that has them on its diagonal: an adapter
costs two thin products forward and four backward, whatever the number of layers in the group. The gradients
of the frozen weights are never formed. A and B are float32; products take them in the base's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manylora.adapters.training.decoder.weights import Weight


@dataclass(frozen=True, slots=True)
class Pair:
    """The trained matrices of one adapter for one module."""

    a: Tensor  # [r, in] float32
    b: Tensor  # [out, r] float32
    scaling: float


@dataclass(frozen=True, slots=True)
class Member:
    """One adapter's matrices for one layer of a group."""

    low: int  # first output of the layer among those of the group
    pair: Pair

    @property
    def outputs(self) -> slice:
        return slice(self.low, self.low + self.pair.b.shape[0])


@dataclass(frozen=True, slots=True)
class Kept:
    """What the backward pass needs of one adapter."""

    seed: int | None  # of its dropout; None without
    thin: Tensor  # x A^T: [tokens, ranks]
    a: Tensor  # [ranks, in], in the base's dtype
    b: Tensor  # [out, ranks], scaled, one block a layer


@dataclass(frozen=True, slots=True)
class Projection:
    """A group of layers with the same input: q, k and v; o; gate and up; down."""

    weight: Weight  # [out, in], the layers' weights one below the other
    bias: Tensor | None  # [out]
    members: tuple[tuple[Member, ...], ...]  # by adapter; empty where it leaves all layers alone
    dropout: float = 0.0

    @property
    def parameters(self) -> list[Tensor]:
        """A and B of every adapter and layer, in the order of the gradients of :meth:`backward`."""
        return [m for adapter in self.members for x in adapter for m in (x.pair.a, x.pair.b)]

    def forward(
        self, x: Tensor, slices: Sequence[slice], seed: int | None
    ) -> tuple[Tensor, list[Kept | None]]:
        """``x`` [tokens, in] -> [tokens, out], each adapter on its slice of the tokens.

        ``seed`` is that of the dropout, None for none.
        """
        weight = self.weight.get()
        y = x @ weight.T if self.bias is None else torch.addmm(self.bias, x, weight.T)
        kept: list[Kept | None] = []
        seed = seed if self.dropout else None
        for rows, members in zip(slices, self.members, strict=True):
            if not members or rows.start == rows.stop:
                kept.append(None)
                continue
            a = torch.cat([member.pair.a for member in members]).to(x.dtype)
            b = _diagonal(members, y.shape[1], x.dtype)
            thin = self._thin(x[rows], a, members, seed)
            y[rows].addmm_(thin, b.T)
            kept.append(Kept(seed, thin, a, b))
        return y, kept

    def backward(
        self, grad: Tensor, x: Tensor, slices: Sequence[slice], kept: Sequence[Kept | None], *, wanted: bool
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of ``x``, where it is ``wanted``, and of the parameters from that of the outputs."""
        dx = grad @ self.weight.get() if wanted else None
        grads: list[Tensor | None] = []
        for rows, members, one in zip(slices, self.members, kept, strict=True):
            if one is None:
                grads += [None] * (2 * len(members))
                continue
            own, read = grad[rows], x[rows]
            thin = own @ one.b
            blocks = own.T @ one.thin
            da = self._backward_thin(thin, read, one, members, None if dx is None else dx[rows])
            at = 0
            for member in members:
                ranks = slice(at, at + member.pair.a.shape[0])
                at = ranks.stop
                grads += [da[ranks].float(), blocks[member.outputs, ranks].float() * member.pair.scaling]
        return dx, grads

    def _thin(self, x: Tensor, a: Tensor, members: Sequence[Member], seed: int | None) -> Tensor:
        if seed is None:
            return x @ a.T
        parts = a.split([member.pair.a.shape[0] for member in members])
        masks = self._masks(x, len(parts), seed)
        return torch.cat([(x * mask) @ part.T for mask, part in zip(masks, parts, strict=True)], dim=1)

    def _backward_thin(
        self, grad: Tensor, x: Tensor, kept: Kept, members: Sequence[Member], dx: Tensor | None
    ) -> Tensor:
        """The gradient of A from that of x A^T; what is due to ``x`` is added to ``dx`` in place."""
        if kept.seed is None:
            if dx is not None:
                dx.addmm_(grad, kept.a)
            return grad.T @ x
        ranks = [member.pair.a.shape[0] for member in members]
        masks = self._masks(x, len(ranks), kept.seed)
        found = []
        for mask, part, a in zip(masks, grad.split(ranks, dim=1), kept.a.split(ranks), strict=True):
            if dx is not None:
                dx.add_((part @ a) * mask)
            found.append(part.T @ (x * mask))
        return torch.cat(found)

    def _masks(self, x: Tensor, count: int, seed: int) -> list[Tensor]:
        """0 or 1 / (1 - dropout), one mask a layer as with PEFT: the same again from the same seed."""
        source = torch.Generator(x.device).manual_seed(seed)
        kept = 1.0 - self.dropout
        draws = (torch.rand(x.shape, generator=source, device=x.device) for _ in range(count))
        return [(draw < kept).to(x.dtype).div_(kept) for draw in draws]


def _diagonal(members: Sequence[Member], width: int, dtype: torch.dtype) -> Tensor:
    """[width, ranks]: every layer's scaled B in the rows of its outputs and the columns of its ranks."""
    ranks = sum(member.pair.b.shape[1] for member in members)
    whole = torch.zeros(width, ranks, dtype=dtype, device=members[0].pair.b.device)
    at = 0
    for member in members:
        b = member.pair.b
        whole[member.outputs, at : at + b.shape[1]] = b * member.pair.scaling
        at += b.shape[1]
    return whole
