"""Do Triton's kernels compile and run on this device? Asked before a model is given to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from manylora.server.kernels.cuda.attention import plan_attention
from manylora.server.kernels.cuda.layers.fused import FusedLayers
from manylora.server.kernels.cuda.layers.step import FusedStep
from manylora.server.kernels.cuda.lora import TritonLoraPlan
from manylora.server.kernels.inputs import AdapterPages, StepInputs, lora_inputs, page_length
from manylora.server.kernels.reference.attention import PagedKV, Scoring
from manylora.server.kernels.reference.step import ReferenceStep, norm_shapes, target_shapes
from manylora.server.kernels.weights import DecoderWeights

_TOKENS = 8  # that the head of the trial knows
_BLOCKS = 2


@dataclass(frozen=True)
class Heads:
    """Sizes of one layer's attention."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int


Launches = Callable[[StepInputs], torch.Tensor]
Made = Callable[[DecoderWeights, torch.Tensor, int], Launches]  # of weights, a pool, and blocks of the cache


def told(error: Exception) -> str:
    """What a trial has shown that raised, in one phrase."""
    return f"Triton's kernels don't run here: {type(error).__name__}: {' '.join(str(error).split())}"


def _usual(weights: DecoderWeights, pool: torch.Tensor, num_blocks: int) -> Launches:
    reference = ReferenceStep(weights, pool, num_blocks, attention=plan_attention, lora_plan=TritonLoraPlan)
    return (reference if FusedLayers.unsupported(weights) is not None else FusedStep(reference, pool)).step


@torch.inference_mode()
def trial(weights: DecoderWeights, made: Made = _usual) -> None:
    """Run the first layer of ``weights`` once on a row that decodes and once on a prompt, with an adapter.

    ``made`` makes what launches steps of it.

    Raises:
        Exception: whatever Triton, its compilers or the driver raise.
    """
    small = replace(weights, layers=weights.layers[:1], lm_head=weights.lm_head[:_TOKENS], ranks=None)
    shapes = target_shapes(small)
    longest = max(page_length(s.in_features) + page_length(s.out_features) for s in shapes)
    pool = weights.embedding.new_zeros(longest)
    norms = [0] * len(norm_shapes(small))
    adapter = AdapterPages(
        "trial",
        np.zeros(len(shapes) + len(norms), np.int64),
        np.array([*[1] * len(shapes), *norms], np.int32),
    )
    launches = made(small, pool, _BLOCKS)
    for rows in (1, 2):
        launches(_rows(rows, adapter))
    _wait(weights.embedding)


@torch.inference_mode()
def attention_trial(shapes: Iterable[Heads], like: torch.Tensor) -> None:
    """Attend once on zeros with layers of those ``shapes``, in the number format of ``like``.

    Raises:
        Exception: as :func:`trial`.
    """
    for shape in shapes:
        kv = PagedKV(_BLOCKS, shape.kv_heads, shape.key_dim, shape.value_dim, like)
        for rows in (1, 2):
            query = like.new_zeros(rows, shape.heads, shape.key_dim)
            plan_attention(_rows(rows, None), like.device).attend(kv, query, Scoring(1.0))
    _wait(like)


def _rows(count: int, adapter: AdapterPages | None) -> StepInputs:
    """So many rows of one sequence, its first ones."""
    return StepInputs(
        token_ids=np.zeros(count, np.int64),
        positions=np.arange(count, dtype=np.int64),
        slots=np.arange(count, dtype=np.int64),
        query_start=np.array([0, count], np.int32),
        context=np.array([count], np.int32),
        block_tables=np.zeros((1, 1), np.int32),
        logits_rows=np.array([count - 1], np.int64),
        lora=None if adapter is None else lora_inputs([[(adapter, 1.0)]]),
    )


def _wait(like: torch.Tensor) -> None:
    if like.device.type == "cuda":
        torch.cuda.synchronize(like.device)
