"""The loss of the learned tokens, fused with the output head: no logits of a whole batch, and none twice.

A chunk of tokens at a time, logits become probabilities and these the gradient of the hidden states, in the
forward pass, in one buffer; the backward pass scales it. The head is frozen and its gradient never formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_NUMBERS = 2**23  # logits at a time: 32 MB in float32


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """Of the learned tokens of a batch, and their weighted sum."""

    total: Tensor  # float32 scalar, by which is differentiated
    each: Tensor  # float32 [learned]: negative log-likelihoods
    right: Tensor  # bool [learned]: the target is the likeliest token


def head_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shares: Tensor
) -> TokenLosses:
    """Cross-entropy of the head's logits.

    Args:
        hidden: [learned, width], after the last norm.
        weight: [vocabulary, width]; bias: [vocabulary] or None.
        targets: int64 [learned]
        shares: float32 [learned]: what each loss is multiplied by in the total.
    """
    apply: Any = _HeadLosses.apply
    return TokenLosses(*apply(hidden, weight, bias, targets, shares))


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them by position
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        each = torch.empty_like(shares)
        right = torch.empty_like(targets, dtype=torch.bool)
        rows = max(1, CHUNK_NUMBERS // weight.shape[0])
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logits = hidden[part] @ weight.T if bias is None else torch.addmm(bias, hidden[part], weight.T)
            each[part], right[part], unlikely = _probabilities(logits, targets[part])
            if ctx.gradient is not None:
                ctx.gradient[part] = (unlikely @ weight) * shares[part, None]
        ctx.mark_non_differentiable(each, right)
        return (each * shares).sum(), each, right

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grads[0]), None, None, None, None


def _probabilities(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, whether the target is the likeliest, and the logits' gradient, which is written over them."""
    wide = logits.float()
    highest, likeliest = wide.max(-1, keepdim=True)
    wanted = targets[:, None]
    ahead = highest - wide.gather(1, wanted)
    wide.sub_(highest).exp_()
    total = wide.sum(-1, keepdim=True)
    wide.div_(total).scatter_add_(1, wanted, torch.full_like(total, -1.0))
    return (total.log() + ahead).squeeze(1), (likeliest == wanted).squeeze(1), logits.copy_(wide)
