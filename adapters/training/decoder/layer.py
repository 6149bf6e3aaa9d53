"""One layer of the Llama family with its gradient written by hand.

What is kept from the forward to the backward pass: what products gave (the layer's input, q, k and v, what
attention read, the middle of the layer, gate and up) and the adapters' thin intermediates. What costs no
product is computed again (norms, rotations, activations), and so are the scores of attention, whose size is
no multiple of the tokens. With gradient checkpointing only the input is kept and the whole layer computed
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from manylora.adapters.training.decoder.attention import Heads, attend, attend_backward
from manylora.adapters.training.decoder.batch import Packed
from manylora.adapters.training.decoder.flash import flash_attend
from manylora.adapters.training.decoder.norm import normed, rms_norm, rms_norm_backward
from manylora.adapters.training.decoder.projection import Kept, Operands, Projection
from manylora.adapters.training.decoder.rope import Angles, rotate, rotate_back

Grads = list[Tensor | None]
LayerOperands = tuple[list[Operands | None], ...]  # of its four projections
Read = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v of some tokens -> what they read


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm: its frozen weight and epsilon."""

    weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of one forward pass share."""

    batch: Packed
    angles: Angles
    is_checkpointed: bool


@dataclass(slots=True)
class Saved:
    """What a layer keeps for its backward pass, apart from its input."""

    first: Tensor  # 1 / root of the norm before attention
    qkv: Tensor  # [tokens, (query + 2 * key heads) * width], before norms and rotation
    read: Tensor  # [tokens, query heads * width]: what attention read
    middle: Tensor  # [tokens, hidden]
    second: Tensor  # 1 / root of the norm before gate and up
    wide: Tensor  # [tokens, 2 * intermediate]: gate and up
    thin: tuple[list[Kept | None], ...]  # of qkv, output, wide, down
    flash: tuple[Tensor, ...] | None  # the graph of flash attention: q, k, v and what was read


@dataclass(frozen=True, slots=True)
class Layer:
    """The parts of a layer, in the order in which they are used."""

    before: Norm
    qkv: Projection
    head_norms: tuple[Norm, Norm] | None  # of queries and keys, where a family has them
    heads: Heads
    output: Projection
    between: Norm
    wide: Projection
    down: Projection

    @property
    def projections(self) -> tuple[Projection, ...]:
        return self.qkv, self.output, self.wide, self.down

    @property
    def parameters(self) -> list[Tensor]:
        return [matrix for projection in self.projections for matrix in projection.parameters]

    def forward(self, x: Tensor, step: Step, seed: int | None) -> tuple[Tensor, Saved]:
        """[tokens, hidden] -> [tokens, hidden]; ``seed`` is that of dropout, None without."""
        slices = step.batch.slices
        seeds = [None if seed is None else seed + index for index in range(4)]
        inner, first = rms_norm(x, self.before.weight, self.before.eps)
        qkv, thin_qkv = self.qkv.forward(inner, slices, seeds[0])
        q, k, v = self._turned(qkv, step.angles)
        flash = flash_attend(q, k, v, step.batch, self.heads) if x.is_cuda else None
        heads = attend(q, k, v, step.batch, self.heads) if flash is None else flash[-1].detach()
        read = heads.reshape(len(x), -1)
        y, thin_output = self.output.forward(read, slices, seeds[1])
        middle = y.add_(x)
        inner, second = rms_norm(middle, self.between.weight, self.between.eps)
        wide, thin_wide = self.wide.forward(inner, slices, seeds[2])
        y, thin_down = self.down.forward(_swiglu(wide), slices, seeds[3])
        thin = (thin_qkv, thin_output, thin_wide, thin_down)
        return y.add_(middle), Saved(first, qkv, read, middle, second, wide, thin, flash)

    def operands(self) -> LayerOperands:
        """What :meth:`infer` takes again and again while the matrices stay as they are."""
        return tuple(projection.operands() for projection in self.projections)

    def infer(
        self, x: Tensor, angles: Angles, slices: Sequence[slice], read: Read, operands: LayerOperands
    ) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden], without anything kept; ``read`` is the attention."""
        qkv, output, wide, down = operands
        inner, _ = rms_norm(x, self.before.weight, self.before.eps)
        q, k, v = self._turned(self.qkv.forward(inner, slices, None, qkv)[0], angles)
        middle = self.output.forward(read(q, k, v).reshape(len(x), -1), slices, None, output)[0].add_(x)
        inner, _ = rms_norm(middle, self.between.weight, self.between.eps)
        active = _swiglu(self.wide.forward(inner, slices, None, wide)[0])
        return self.down.forward(active, slices, None, down)[0].add_(middle)

    def backward(
        self, grad: Tensor, x: Tensor, saved: Saved, step: Step, *, wanted: bool
    ) -> tuple[Tensor | None, Grads]:
        """The gradients of ``x``, where it is ``wanted``, and of :attr:`parameters`."""
        grad, mlp = self._backward_mlp(grad, saved, step)
        slices = step.batch.slices
        read, output = self.output.backward(grad, saved.read, None, slices, saved.thin[1], wanted=True)
        assert read is not None, "it was asked for"
        dqkv = self._backward_attention(read, saved, step)
        inner = normed(x, self.before.weight, saved.first)
        dinner, qkv = self.qkv.backward(dqkv, inner, saved.qkv, slices, saved.thin[0], wanted=wanted)
        grads = qkv + output + mlp
        if dinner is None:
            return None, grads
        return rms_norm_backward(dinner, x, self.before.weight, saved.first).add_(grad), grads

    def _backward_mlp(self, grad: Tensor, saved: Saved, step: Step) -> tuple[Tensor, Grads]:
        slices = step.batch.slices
        gate, up = saved.wide.chunk(2, dim=1)
        active = functional.silu(gate)
        dinner, down = self.down.backward(grad, active * up, None, slices, saved.thin[3], wanted=True)
        assert dinner is not None, "it was asked for"
        dwide = torch.empty_like(saved.wide)
        dgate, dup = dwide.chunk(2, dim=1)
        torch.mul(dinner, active, out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(dinner.mul_(up), gate))
        inner = normed(saved.middle, self.between.weight, saved.second)
        dinner, wide = self.wide.backward(dwide, inner, saved.wide, slices, saved.thin[2], wanted=True)
        assert dinner is not None, "it was asked for"
        middle = rms_norm_backward(dinner, saved.middle, self.between.weight, saved.second)
        return middle.add_(grad), wide + down

    def _backward_attention(self, grad: Tensor, saved: Saved, step: Step) -> Tensor:
        """The gradient of q, k and v as they came from their product: [tokens, out]."""
        spread = grad.view(len(grad), self.heads.queries, self.heads.width)
        if saved.flash is None:
            q, k, v = self._turned(saved.qkv, step.angles)
            dq, dk, dv = attend_backward(spread, (q, k, v), step.batch, self.heads)
        else:
            *inputs, read = saved.flash
            dq, dk, dv = torch.autograd.grad(read, inputs, spread)
        found = torch.empty_like(saved.qkv)
        parts = self._split(found)
        both = zip((dq, dk), self._split(saved.qkv)[:2], parts[:2], (0, 1), strict=True)
        for turned, raw, into, which in both:
            back = rotate_back(turned, step.angles)
            if self.head_norms is not None:
                norm = self.head_norms[which]
                _, inverse = rms_norm(raw, norm.weight, norm.eps)
                back = rms_norm_backward(back, raw, norm.weight, inverse)
            into.copy_(back)
        parts[2].copy_(dv)
        return found

    def _turned(self, qkv: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys as attention takes them, and values: [tokens, heads, width] each."""
        q, k, v = self._split(qkv)
        if self.head_norms is not None:
            q, k = (
                rms_norm(x, norm.weight, norm.eps)[0] for x, norm in zip((q, k), self.head_norms, strict=True)
            )
        return rotate(q, angles), rotate(k, angles), v

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys = self.heads.queries, self.heads.keys
        parts = qkv.view(len(qkv), -1, self.heads.width).split([queries, keys, keys], dim=1)
        return parts[0], parts[1], parts[2]


def _swiglu(wide: Tensor) -> Tensor:
    gate, up = wide.chunk(2, dim=1)
    return functional.silu(gate).mul_(up)


class LayerFunction(torch.autograd.Function):
    """A layer as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: Layer, step: Step, seed: int | None, *_parameters: Tensor
    ) -> Tensor:
        y, saved = layer.forward(x, step, seed)
        ctx.save_for_backward(x)
        ctx.layer, ctx.step, ctx.seed = layer, step, seed
        ctx.saved = None if step.is_checkpointed or not any(ctx.needs_input_grad) else saved
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        saved, ctx.saved = ctx.saved, None
        if saved is None:
            _, saved = ctx.layer.forward(x, ctx.step, ctx.seed)
        wanted = ctx.needs_input_grad[0]
        dx, found = ctx.layer.backward(grads[0], x, saved, ctx.step, wanted=wanted)
        return dx, None, None, None, *found
