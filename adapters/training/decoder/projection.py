"""Linear layers that read the same input as one product, with the adapters on them, and their gradients.

The A matrices of a group are one matrix, and its B matrices one that has them on its diagonal: an adapter
costs two thin products forward and four backward, whatever the number of layers in the group. The gradients
of the frozen weights are never formed. A and B are float32; products take them in the base's dtype.

DoRA multiplies each output, without its bias, by a gain. Under dropout PEFT gives both W and B A the dropped
input in what DoRA adds to the base's output, and each layer its own mask: one more full product forward and
backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manylora.adapters.training.decoder.gains import (
    Gains,
    gains_of,
    gradient_by_inputs,
    gradient_by_outputs,
)
from manylora.adapters.training.decoder.weights import Weight
from manylora.adapters.training.model.pairs import Pair


@dataclass(frozen=True, slots=True)
class Member:
    """One adapter's matrices for one layer of a group."""

    low: int  # first output of the layer among those of the group
    pair: Pair

    @property
    def outputs(self) -> slice:
        return slice(self.low, self.low + self.pair.b.shape[0])


Members = tuple[Member, ...]  # of one adapter


@dataclass(frozen=True, slots=True)
class Operands:
    """The matrices of one adapter as products take them."""

    a: Tensor  # [ranks, in], in the base's dtype
    b: Tensor  # [out, ranks], scaled, one block a layer
    gains: Gains | None  # of DoRA


@dataclass(frozen=True, slots=True)
class Kept:
    """What the backward pass needs of one adapter."""

    seed: int | None  # of its dropout; None without
    thin: Tensor  # x A^T: [tokens, ranks]
    operands: Operands
    before: Tensor | None = None  # [tokens, out]: what gains multiplied, where the outputs don't tell


@dataclass(frozen=True, slots=True)
class Projection:
    """A group of layers with the same input: q, k and v; o; gate and up; down."""

    weight: Weight  # [out, in], the layers' weights one below the other
    bias: Tensor | None  # [out]
    members: tuple[Members, ...]  # by adapter; empty where it leaves all layers alone
    dropout: float = 0.0
    is_output_kept: bool = False  # whether the backward pass is given the outputs again

    @property
    def parameters(self) -> list[Tensor]:
        """What every adapter trains in every layer, in the order of the gradients of :meth:`backward`."""
        return [m for members in self.members for member in members for m in member.pair.parameters]

    @property
    def _has_gains(self) -> bool:
        return any(member.pair.magnitude is not None for members in self.members for member in members)

    def operands(self) -> list[Operands | None]:
        """Those of every adapter that changes one of these layers, of the matrices that it has now."""
        weight = self.weight.get()
        return [self._operands(weight, members) if members else None for members in self.members]

    def forward(
        self,
        x: Tensor,
        slices: Sequence[slice],
        seed: int | None,
        operands: Sequence[Operands | None] | None = None,
    ) -> tuple[Tensor, list[Kept | None]]:
        """``x`` [tokens, in] -> [tokens, out], each adapter on its slice of the tokens.

        ``seed`` is that of the dropout, None for none; ``operands`` are made where they are not given.
        """
        weight = self.weight.get()
        is_bias_last = self.bias is not None and self._has_gains
        y = x @ weight.T if self.bias is None or is_bias_last else torch.addmm(self.bias, x, weight.T)
        kept: list[Kept | None] = []
        seed = seed if self.dropout else None
        for index, (rows, members) in enumerate(zip(slices, self.members, strict=True)):
            if not members or rows.start == rows.stop:
                kept.append(None)
                continue
            one = None if operands is None else operands[index]
            one = self._operands(weight, members) if one is None else one
            if one.gains is None or seed is None:
                kept.append(self._adapt(y[rows], x[rows], members, one, seed))
            else:
                kept.append(self._adapt_dropped(y[rows], x[rows], weight, members, one, seed=seed))
        if self.bias is not None and is_bias_last:
            y.add_(self.bias)
        return y, kept

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        y: Tensor | None,
        slices: Sequence[slice],
        kept: Sequence[Kept | None],
        *,
        wanted: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of ``x``, where it is ``wanted``, and of the parameters from that of the outputs.

        ``y`` are the outputs, which are asked for where ``is_output_kept``.
        """
        weight = self.weight.get() if wanted else None
        gained = _before_gains(grad, slices, kept)
        dx = None if weight is None else gained @ weight
        grads: list[Tensor | None] = []
        for rows, members, one in zip(slices, self.members, kept, strict=True):
            if one is None:
                grads += [None] * sum(len(member.pair.parameters) for member in members)
                continue
            own, read, gains = grad[rows], x[rows], one.operands.gains
            into = None if dx is None else dx[rows]
            if gains is None or one.seed is None:
                inner = gained[rows]
            else:
                inner = (own * gains.gain).to(own.dtype)
                if into is not None and weight is not None:
                    self._backward_base(own * (gains.gain - 1), read, weight, members, seed=one.seed, dx=into)
            thin = inner @ one.operands.b
            blocks = inner.T @ one.thin
            da = self._backward_thin(thin, read, one, members, into)
            outputs = None if y is None else y[rows]
            magnitudes = None if gains is None else _magnitude_gradient(own, outputs, one, gains)
            grads += _by_member(members, da, blocks, magnitudes)
        return dx, grads

    def _operands(self, weight: Tensor, members: Members) -> Operands:
        a = torch.cat([member.pair.a for member in members])
        if members[0].pair.magnitude is None:
            return Operands(a.to(weight.dtype), _diagonal(members, len(weight), weight.dtype), None)
        b = _diagonal(members, len(weight), torch.float32)
        magnitudes = [(m.outputs, m.pair.magnitude) for m in members if m.pair.magnitude is not None]
        gains = gains_of(weight, self.weight.squared_norms(), a, b, magnitudes)
        return Operands(a.to(weight.dtype), b.to(weight.dtype), gains)

    def _adapt(self, y: Tensor, x: Tensor, members: Members, one: Operands, seed: int | None) -> Kept:
        """Change the base's outputs ``y`` in place."""
        thin = self._thin(x, one.a, members, seed)
        y.addmm_(thin, one.b.T)
        if one.gains is None:
            return Kept(seed, thin, one)
        is_told = self.is_output_kept and self.bias is None and one.gains.is_invertible
        before = None if is_told else y.clone()
        y.mul_(one.gains.gain)
        return Kept(seed, thin, one, before)

    def _adapt_dropped(
        self, y: Tensor, x: Tensor, weight: Tensor, members: Members, one: Operands, *, seed: int
    ) -> Kept:
        """Add to W x, in place, what DoRA adds under dropout: (g - 1) W x' + g s B A x'."""
        assert one.gains is not None
        before = torch.zeros_like(y)
        thin = []
        ranks = [len(member.pair.a) for member in members]
        masks = self._masks(x, len(members), seed)
        blocks = zip(one.a.split(ranks), one.b.split(ranks, dim=1), strict=True)
        for member, mask, (a, b) in zip(members, masks, blocks, strict=True):
            own = member.outputs
            dropped = x * mask
            thin.append(dropped @ a.T)
            base = dropped @ weight[own].T
            change = thin[-1] @ b[own].T
            gain = one.gains.gain[own]
            y[:, own].add_(torch.addcmul(change * gain, base, gain - 1))
            before[:, own] = base.add_(change)
        return Kept(seed, torch.cat(thin, dim=1), one, before)

    def _thin(self, x: Tensor, a: Tensor, members: Members, seed: int | None) -> Tensor:
        if seed is None:
            return x @ a.T
        parts = a.split([len(member.pair.a) for member in members])
        masks = self._masks(x, len(parts), seed)
        return torch.cat([(x * mask) @ part.T for mask, part in zip(masks, parts, strict=True)], dim=1)

    def _backward_thin(
        self, grad: Tensor, x: Tensor, kept: Kept, members: Members, dx: Tensor | None
    ) -> Tensor:
        """The gradient of A from that of x A^T; what is due to ``x`` is added to ``dx`` in place."""
        if kept.seed is None:
            if dx is not None:
                dx.addmm_(grad, kept.operands.a)
            return grad.T @ x
        ranks = [len(member.pair.a) for member in members]
        masks = self._masks(x, len(ranks), kept.seed)
        found = []
        for mask, part, a in zip(masks, grad.split(ranks, dim=1), kept.operands.a.split(ranks), strict=True):
            if dx is not None:
                dx.add_((part @ a) * mask)
            found.append(part.T @ (x * mask))
        return torch.cat(found)

    def _backward_base(
        self, grad: Tensor, x: Tensor, weight: Tensor, members: Members, *, seed: int, dx: Tensor
    ) -> None:
        """Add to ``dx`` what is due to x through W x' under dropout, of which ``grad`` is the gradient."""
        for member, mask in zip(members, self._masks(x, len(members), seed), strict=True):
            dx.add_((grad[:, member.outputs].to(weight.dtype) @ weight[member.outputs]) * mask)

    def _masks(self, x: Tensor, count: int, seed: int) -> list[Tensor]:
        """0 or 1 / (1 - dropout), one mask a layer as with PEFT: the same again from the same seed."""
        source = torch.Generator(x.device).manual_seed(seed)
        kept = 1.0 - self.dropout
        draws = (torch.rand(x.shape, generator=source, device=x.device) for _ in range(count))
        return [(draw < kept).to(x.dtype).div_(kept) for draw in draws]


def _before_gains(grad: Tensor, slices: Sequence[slice], kept: Sequence[Kept | None]) -> Tensor:
    """The gradient of W x: times the gains, except where they multiply W x' of a dropped input."""
    found = grad
    for rows, one in zip(slices, kept, strict=True):
        if one is not None and one.operands.gains is not None and one.seed is None:
            found = grad.clone() if found is grad else found
            found[rows].mul_(one.operands.gains.gain)
    return found


def _magnitude_gradient(grad: Tensor, y: Tensor | None, one: Kept, gains: Gains) -> Tensor:
    """The gradient of the magnitudes, [out] float32, from that of the outputs ``y``."""
    if one.before is not None:
        return gradient_by_inputs(grad, one.before, gains)
    assert y is not None, "is_output_kept"
    return gradient_by_outputs(grad, y, gains)


def _by_member(members: Members, da: Tensor, db: Tensor, dm: Tensor | None) -> list[Tensor]:
    """The gradients of every layer's A, B and magnitudes out of those of the group."""
    grads = []
    at = 0
    for member in members:
        ranks = slice(at, at + len(member.pair.a))
        at = ranks.stop
        grads += [da[ranks].float(), db[member.outputs, ranks].float() * member.pair.scaling]
        if dm is not None:
            grads.append(dm[member.outputs])
    return grads


def _diagonal(members: Members, width: int, dtype: torch.dtype) -> Tensor:
    """[width, ranks]: every layer's scaled B in the rows of its outputs and the columns of its ranks."""
    ranks = sum(member.pair.b.shape[1] for member in members)
    whole = torch.zeros(width, ranks, dtype=dtype, device=members[0].pair.b.device)
    at = 0
    for member in members:
        b = member.pair.b
        whole[member.outputs, at : at + b.shape[1]] = b * member.pair.scaling
        at += b.shape[1]
    return whole
