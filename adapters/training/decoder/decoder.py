"""The whole decoder: packed tokens to hidden states, and to the losses of what is learned of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from manylora.adapters.training.decoder.batch import Learned, Packed, learned_of
from manylora.adapters.training.decoder.head import TokenLosses, head_losses
from manylora.adapters.training.decoder.layer import Layer, LayerFunction, Norm, Step
from manylora.adapters.training.decoder.norm import rms_norm, rms_norm_backward
from manylora.adapters.training.decoder.rope import Angles

SEEDS_A_LAYER = 4  # one for each of its projections


@dataclass(frozen=True)
class FusedDecoder:
    """A model of the Llama family with its adapters, for training and for held-out losses."""

    embedding: Any  # torch's module
    rotary: Any  # transformers' module of this model's kind of rope
    layers: tuple[Layer, ...]
    last: Norm
    head: Tensor  # [vocabulary, hidden]
    head_bias: Tensor | None
    dtype: torch.dtype
    is_checkpointed: bool = False

    @property
    def adapters(self) -> int:
        """How many adapters share the base."""
        return len(self.layers[0].qkv.members)

    @property
    def device(self) -> torch.device:
        return self.head.device

    def hidden(self, batch: Packed, *, drops: bool = False) -> Tensor:
        """The hidden states after the last norm: [tokens, hidden].

        ``drops`` applies the adapters' dropout, whose masks follow from torch's global random state.
        """
        through: Any = LayerFunction.apply
        last: Any = _LastNorm.apply
        with torch.autocast(self.device.type, enabled=False):
            x = self.embedding(batch.ids).detach().to(self.dtype)
            step = Step(batch, self.angles(batch.positions, x), self.is_checkpointed)
            seed = int(torch.randint(2**31, ()).item()) if drops else None
            for index, layer in enumerate(self.layers):
                own = None if seed is None else seed + SEEDS_A_LAYER * index
                x = through(x, layer, step, own, *layer.parameters)
            normed: Tensor = last(x, self.last)
            return normed

    def losses(self, batch: Packed, learned: Learned, shares: Tensor, *, drops: bool = False) -> TokenLosses:
        """The losses of what is learned; ``shares`` float32 [learned] weigh them in their total."""
        hidden = self.hidden(batch, drops=drops).index_select(0, learned.rows)
        with torch.autocast(self.device.type, enabled=False):
            return head_losses(hidden, self.head, self.head_bias, learned.targets, shares)

    def angles(self, positions: Tensor, x: Tensor) -> Angles:
        """The rotations of tokens at ``positions``, in the dtype of ``x``."""
        cos, sin = self.rotary(x, positions[None])
        half = cos.shape[-1] // 2
        return Angles(cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous())

    def logits(self, x: Tensor) -> Tensor:
        """Logits of states that come from the last layer: [tokens, hidden] -> [tokens, vocabulary]."""
        return functional.linear(rms_norm(x, self.last.weight, self.last.eps)[0], self.head, self.head_bias)


def packed(
    sequences: Sequence[Sequence[int]], device: torch.device, adapters: int = 1, which: int | None = 0
) -> Packed:
    """Sequences of ids as a batch, all of one (``which``) of so many adapters, or of none."""
    ids = torch.tensor([token for ids in sequences for token in ids], device=device)
    slices = [slice(0, len(ids) if index == which else 0) for index in range(adapters)]
    return Packed(ids, tuple(len(ids) for ids in sequences), tuple(slices))


SCORED_TOKENS = 4096  # in one forward pass


@torch.no_grad()
def scores(
    decoder: FusedDecoder,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    adapter: int | None,
) -> tuple[float, float]:
    """Loss and token accuracy over all learned tokens of ``rows`` of ids and labels.

    With one of the decoder's adapters, or of the base alone.
    """
    total, right, count = 0.0, 0, 0
    group: list[tuple[Sequence[int], Sequence[int]]] = []
    for index, row in enumerate(rows):
        group.append(row)
        if index + 1 < len(rows) and sum(len(ids) for ids, _ in group) < SCORED_TOKENS:
            continue
        batch = packed([ids for ids, _ in group], decoder.device, decoder.adapters, adapter)
        labels = torch.tensor([label for _, labels in group for label in labels], device=decoder.device)
        learned = learned_of(labels, batch.lengths)
        losses = decoder.losses(batch, learned, torch.ones(len(learned.rows), device=decoder.device))
        total += float(losses.total)
        right += int(losses.right.sum())
        count += len(learned.rows)
        group = []
    return total / count, right / count


class _LastNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm) -> Tensor:
        y, inverse = rms_norm(x, norm.weight, norm.eps)
        ctx.save_for_backward(x, inverse)
        ctx.norm = norm
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, inverse = ctx.saved_tensors
        return rms_norm_backward(grads[0], x, ctx.norm.weight, inverse), None
