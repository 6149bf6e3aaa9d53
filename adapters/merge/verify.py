"""Does a merged model answer like the base with the adapters beside it? Asked before it is handed over."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import isfinite
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
from manylora.adapters.fidelity.probing import Hook, hooked, random_prompts
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.merge.experts.beside import add_beside_experts, changed_experts
from manylora.adapters.merge.experts.routing import Routing
from manylora.adapters.merge.export_plan import ExportPlan
from manylora.adapters.merge.weights import Deltas

# How much more than the rounding that was simulated passes: two roundings are never alike. Where the models
# compute in 16 bits, what lies between the modules is rounded as well, which the simulation leaves out.
_MARGIN, _MARGIN_IN_16_BITS = 4.0, 8.0
_FLOOR = 1e-3  # relative: what sums of float32 in another order may come to
_LENGTHS = (48, 17)


@dataclass(frozen=True)
class Verification:
    """Largest of the relative errors of all rows of logits (fidelity.measures.relative_errors)."""

    error: float  # merged model against base with adapters: what rounding the merged weights costs
    limit: float  # the largest error that this model's own sensitivity to rounding explains
    effect: float  # base with adapters against base alone: what there was to preserve
    same_top: float  # share of rows whose likeliest token is the same, merged and unmerged
    rows: int
    compute_dtype: torch.dtype


def verify(plan: ExportPlan, directory: Path, compute_dtype: torch.dtype) -> Verification:
    """Load base and merged model, one after the other, and compare their logits on random tokens.

    Raises:
        MergeFailed: they differ by more than the rounding of the weights explains.
    """
    routing = Routing({stack.module for stack in plan.stored.stacks.values()})
    alone, beside, rounded = _base_logits(plan, compute_dtype, routing)
    model = load_model(directory, compute_dtype)
    with routing.followed(model):
        merged = random_prompt_logits(model)
    del model
    error, effect, rounding = (
        float(relative_errors(beside, other).max()) for other in (merged, alone, rounded)
    )
    margin = _MARGIN if compute_dtype == torch.float32 else _MARGIN_IN_16_BITS
    limit = margin * rounding + _FLOOR
    if not (isfinite(error) and error <= limit):
        raise MergeFailed(
            f"the merged model's logits differ by {error:.2g} from those of the base with the adapters, "
            f"and rounding explains {limit:.2g} at most: nothing was written; try --dtype fp32, or smaller "
            "weights"
        )
    same = float(same_likeliest(beside, merged).float().mean())
    return Verification(error, limit, effect, same, len(merged), compute_dtype)


def _base_logits(
    plan: ExportPlan, dtype: torch.dtype, routing: Routing
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The base's logits alone, with the adapters, and with them and weights that are rounded at random.

    ``routing`` keeps which experts the second took, which are those of the third.
    """
    model = load_model(plan.stored.directory, dtype)
    written = [t.dtype for shard in plan.shards for t in shard if t.is_changed]
    rounding = _Rounding(max(torch.finfo(dtype).eps for dtype in written if dtype is not None))  # floats
    deltas, stacks = plan.deltas, plan.stored.stacks.values()
    experts = changed_experts(stacks, deltas)
    matrices = {name for stack in stacks for name in stack.matrices}
    found = [random_prompt_logits(model)]
    for beside, noise, route in (
        (add_beside, None, routing.recorded),
        (rounding.add_beside, rounding.noise, routing.followed),
    ):
        hooks: dict[str, Hook] = {
            name: partial(beside, parts) for name, parts in deltas.items() if name not in matrices
        }
        hooks |= {name: partial(add_beside_experts, parts, noise) for name, parts in experts.items()}
        with hooked(model, hooks), route(model):
            found.append(random_prompt_logits(model))
    return found[0], found[1], found[2]


class _Rounding:
    """Puts adapters beside modules whose weights are off by up to half a ``step`` of their size, at random.

    The weights are the base's: it never looks at the merged ones, which it helps to judge.
    """

    def __init__(self, step: float) -> None:
        self._step = step
        self._generator = torch.Generator().manual_seed(0)

    def add_beside(
        self, parts: Deltas, module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        """A forward hook, as :func:`add_beside` is."""
        y = add_beside(parts, module, args, output).float()
        if module.weight.dim() != 2:  # a norm, of which only the bias is changed
            return y.to(output.dtype)
        weight = (module.weight.T if is_transposed(module) else module.weight).float()
        change = (y - output.float()) * self.noise(y.shape)
        return (y + F.linear(args[0].float(), weight * self.noise(weight.shape)) + change).to(output.dtype)

    def noise(self, shape: torch.Size) -> torch.Tensor:
        """By what share of themselves values of that shape are off."""
        return (torch.rand(shape, generator=self._generator) - 0.5) * self._step


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
