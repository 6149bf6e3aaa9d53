"""Which paged attention the generic decoder runs."""

from __future__ import annotations

import logging
from collections.abc import Collection

import torch

from manylora.server.kernels.reference.attention import PlanAttention, plan_attention

logger = logging.getLogger(__name__)

HeadSizes = tuple[int, int, int, int]  # heads, kv heads, key size, value size


def planner_for(sizes: Collection[HeadSizes], like: torch.Tensor) -> PlanAttention:
    """Triton's on a GPU where its kernels run for layers of these ``sizes``, else PyTorch's.

    PyTorch's copies the keys and values of all contexts at every layer.
    """
    if like.device.type != "cuda":
        return plan_attention
    try:
        return _triton_planner(sizes, like)
    except Exception as error:  # of imports, Triton, its compilers, the driver: there is no common base
        logger.warning(
            "attention runs in PyTorch, which is slow and takes memory for long contexts: Triton's kernels "
            "don't run here: %s: %s",
            type(error).__name__,
            " ".join(str(error).split()),
        )
        return plan_attention


def _triton_planner(sizes: Collection[HeadSizes], like: torch.Tensor) -> PlanAttention:
    from manylora.server.kernels.cuda import attention, trial  # noqa: PLC0415 - only CUDA builds bring Triton

    trial.attention_trial([trial.Heads(*size) for size in sizes], like)
    return attention.plan_attention
