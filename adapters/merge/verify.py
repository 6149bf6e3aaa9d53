"""Does a merged model answer like the base with the adapters beside it? Asked before it is handed over."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from manylora.adapters.base_models.configuration import plain_config
from manylora.adapters.base_models.layers import is_transposed
from manylora.adapters.base_models.norms import norm_with
from manylora.adapters.errors import MergeFailed
from manylora.adapters.fidelity.measures import relative_errors, same_likeliest
from manylora.adapters.fidelity.precision import widen
from manylora.adapters.fidelity.probing import hooked, random_prompts
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.merge.export_plan import Deltas, ExportPlan

# Largest accepted difference of a row of logits, relative to the row's own spread, by the dtype of the
# merged weights where both models compute in float32. Where they don't, rounding at every layer adds to it.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
_ROUNDED_COMPUTE = 0.5
_LENGTHS = (48, 17)


@dataclass(frozen=True)
class Verification:
    """Largest of the relative errors of all rows of logits (fidelity.measures.relative_errors)."""

    error: float  # merged model against base with adapters: what rounding the merged weights costs
    effect: float  # base with adapters against base alone: what there was to preserve
    same_top: float  # share of rows whose likeliest token is the same, merged and unmerged
    rows: int
    compute_dtype: torch.dtype


def verify(plan: ExportPlan, directory: Path, compute_dtype: torch.dtype) -> Verification:
    """Load base and merged model, one after the other, and compare their logits on random tokens.

    Raises:
        MergeFailed: they differ by more than the rounding of the weights explains.
    """
    alone, beside = _base_logits(plan, compute_dtype)
    merged = random_prompt_logits(load_model(directory, compute_dtype))
    error, effect = (float(relative_errors(beside, other).max()) for other in (merged, alone))
    limit = tolerance(plan, compute_dtype)
    if error > limit:
        raise MergeFailed(
            f"the merged model's logits differ by {error:.2g} from those of the base with the adapters, "
            f"accepted is {limit:g}: nothing was written; try --dtype fp32, or smaller weights"
        )
    same = float(same_likeliest(beside, merged).float().mean())
    return Verification(error, effect, same, len(merged), compute_dtype)


def tolerance(plan: ExportPlan, compute_dtype: torch.dtype) -> float:
    """The largest difference that passes for rounding."""
    if compute_dtype != torch.float32:
        return _ROUNDED_COMPUTE
    written = {t.dtype for shard in plan.shards for t in shard if t.module is not None}
    return max(_TOLERANCE[dtype] for dtype in written if dtype in _TOLERANCE)


def _base_logits(plan: ExportPlan, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The base's logits alone, and with the adapters."""
    model = load_model(plan.stored.directory, dtype)
    alone = random_prompt_logits(model)
    with hooked(model, {name: partial(add_beside, parts) for name, parts in plan.deltas.items()}):
        return alone, random_prompt_logits(model)


def load_model(directory: Path, dtype: torch.dtype) -> Any:
    """The model, computing in ``dtype``; for float32 its weights stay as they are stored.

    The whole model in float32 would take twice the memory of one in 16 bits.
    """
    kept = "auto" if dtype == torch.float32 else dtype
    config = plain_config(directory)
    model = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=kept, generation_config=GenerationConfig()
    )
    model = model.eval().requires_grad_(False)
    if dtype == torch.float32:
        for module in model.modules():
            widen(module)
    return model


@torch.inference_mode()
def random_prompt_logits(model: Any) -> torch.Tensor:
    """What the model says after every token of the random prompts: float32 [rows, V]."""
    prompts = random_prompts(model, _LENGTHS)
    return torch.cat([model(input_ids=ids[None], use_cache=False).logits[0].float() for ids in prompts])


def add_beside(
    parts: Deltas, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor:
    """A forward hook: the output of ``module`` with the adapters beside its weight, unmerged."""
    x, y = args[0].float(), output.float()
    result = y + sum(weight * (_alone(module, delta, x, y) - y) for delta, weight in parts)
    return result.to(output.dtype)


def _alone(module: Any, delta: ModuleDelta, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The layer's output under one adapter, from its input and its output under the base."""
    if delta.scale is not None:
        own: torch.Tensor = norm_with(module, delta.scale, delta.bias)(x)
        return own.float()
    bias = 0.0 if module.bias is None else module.bias.float()
    own_bias = bias if delta.bias is None else delta.bias.float()
    weight = (module.weight.T if is_transposed(module) else module.weight).float()
    if delta.rank == 0 and delta.input_scale is None and delta.magnitude is None:
        inner = y - bias
    else:
        inner = y - bias if delta.input_scale is None else F.linear(x * delta.input_scale.float(), weight)
        a, b = delta.factors(weight)
        inner = inner + (x @ a.float().T) @ b.T
        if delta.magnitude is not None:
            norm = (weight + b @ a.float()).norm(dim=1)
            inner = inner * (delta.magnitude.float() / norm)
    result = inner + own_bias
    if delta.output_scale is not None:
        result = result * delta.output_scale.float()
    if delta.shifts:
        result = result + delta.shift(weight, module.bias)
    return result if delta.b_bias is None else result + delta.scaling * delta.b_bias.float()
