"""The weights of a Hugging Face model, as the fused decoder runs them; its family says where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from manylora.adapters.base_models.layers import experts_of, target_of
from manylora.adapters.format.base import TargetModule, matrices_of
from manylora.server.kernels.matrices import Matrix, QuantizedMatrix
from manylora.server.kernels.reference.quantized import Quantized
from manylora.server.kernels.weights import (
    MATRICES,
    NORMS,
    DecoderWeights,
    Experts,
    LayerWeights,
    stack_biases,
)
from manylora.server.model.decoders.families import ACTIVATIONS, FAMILIES, ExpertNames, Family
from manylora.server.model.decoders.quantize import is_quantized
from manylora.server.model.decoders.stacking import stack


def extract_weights(model: Any, max_len: int) -> DecoderWeights:
    """Fused weights of a model of one of :data:`FAMILIES`; rotary tables cover ``max_len`` positions."""
    config, inner = model.config, model.model
    family = FAMILIES[config.model_type]
    cos, sin = _rotary_tables(model, family, max_len)
    divisor = _number(config, family.logit_divisor)
    return DecoderWeights(
        embedding=inner.embed_tokens.weight.detach(),
        layers=tuple(_layer_weights(layer, config, family) for layer in inner.layers),
        final_norm=inner.norm.weight.detach(),
        lm_head=model.lm_head.weight.detach(),
        cos=cos,
        sin=sin,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=head_dim_of(config),
        intermediate=_width_of_mlps(model, family),
        eps=config.rms_norm_eps,
        scale=inner.layers[0].self_attn.scaling,
        stacked=frozenset(name for name in ("qkv", "gate_up") if len(family.modules.get(name, ())) == 1),
        activation=ACTIVATIONS[getattr(config, family.activation)],
        norm_offset=family.norm_offset,
        embedding_scale=_embedding_scale(model, family),
        residual_scale=_number(config, family.residual_scale) or 1.0,
        score_cap=_number(config, family.score_cap),
        logit_scale=1.0 if divisor is None else 1.0 / divisor,
        logit_cap=_number(config, family.logit_cap),
        expert_intermediate=getattr(config, family.experts.width) if family.experts else 0,
        chosen_experts=getattr(config, family.experts.chosen) if family.experts else 0,
        normalized_shares=_normalizes(config, family),
    )


def free_matrices(model: Any, *, codes: bool) -> None:
    """Let go of the memory of the layers' matrices, of ``codes`` if asked, in a model that runs no more."""
    for module in projections(model).values():
        if not is_quantized(module):
            module.weight = _meta(module.weight)
        elif codes:
            module.drop()
    for experts in _expert_modules(model):
        experts.gate_up_proj, experts.down_proj = _meta(experts.gate_up_proj), _meta(experts.down_proj)


def _expert_modules(model: Any) -> list[Any]:
    experts = FAMILIES[model.config.model_type].experts
    found = [] if experts is None else [_module_or_none(layer, experts) for layer in model.model.layers]
    return [module for module in found if module is not None]


def _module_or_none(layer: Any, experts: ExpertNames) -> Any | None:
    """The module of a layer's experts, if it has some."""
    return dict(layer.named_modules()).get(experts.module)


def _modules_in(layer: Any, family: Family) -> Mapping[str, tuple[str, ...]]:
    """The linear layers of each matrix of a layer: of a family with experts its MLP, where it has one."""
    experts = family.experts
    dense = experts is not None and _module_or_none(layer, experts) is None
    return {**family.modules, **experts.mlp} if experts is not None and dense else family.modules


def _width_of_mlps(model: Any, family: Family) -> int:
    """Of models that have none but experts that of these: nothing is to be made larger for it."""
    experts, layers = family.experts, model.model.layers
    every = experts is not None and len(_expert_modules(model)) == len(layers)
    return int(getattr(model.config, experts.width if experts and every else "intermediate_size"))


def _meta(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.to("meta"), requires_grad=False)


def _normalizes(config: Any, family: Family) -> bool:
    named = None if family.experts is None else family.experts.normalized
    return True if named is None else bool(getattr(config, named))


def projections(model: Any) -> dict[str, Any]:
    """The linear layers of the blocks by name, in the numbering of :class:`DecoderWeights`."""
    family = FAMILIES[model.config.model_type]
    return {
        f"model.layers.{index}.{name}": layer.get_submodule(name)
        for index, layer in enumerate(model.model.layers)
        for names in _modules_in(layer, family).values()
        for name in names
    }


def target_modules(model: Any) -> tuple[TargetModule, ...]:
    """The projections, the norms, then the experts, in the numbering of :class:`DecoderWeights`."""
    named = FAMILIES[model.config.model_type].norms
    norms = {
        f"model.layers.{index}.{named[norm]}": layer.get_submodule(named[norm])
        for index, layer in enumerate(model.model.layers)
        for norm in NORMS
        if norm in named
    }
    every = projections(model) | norms | {"model.norm": model.model.norm}
    return (*(target_of(name, module) for name, module in every.items()), *_experts_apart(model))


def _experts_apart(model: Any) -> list[TargetModule]:
    """Expert by expert, each with gate and up before down."""
    if FAMILIES[model.config.model_type].experts is None:
        return []
    stacks = experts_of(model)
    return [
        module
        for pair in zip(stacks[::2], stacks[1::2], strict=True)
        for modules in zip(*map(matrices_of, pair), strict=True)
        for module in modules
    ]


def head_dim_of(config: Any) -> int:
    """The size of a head by a transformers config."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _number(config: Any, attribute: str | None) -> float | None:
    value = None if attribute is None else getattr(config, attribute)
    return None if value is None else float(value)


def _embedding_scale(model: Any, family: Family) -> float:
    """As the model rounds it: to the dtype of the embeddings, if their own module multiplies."""
    if family.scaled_embeddings:
        table = model.model.embed_tokens
        return float(table.embed_scale.to(table.weight.dtype))
    return _number(model.config, family.embedding_scale) or 1.0


def _rotary_tables(model: Any, family: Family, max_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every table [tables, max_len, n / 2], where n dimensions of a head turn."""
    positions = torch.arange(max_len, device=model.model.embed_tokens.weight.device)[None]
    like = torch.zeros(1, dtype=torch.float32, device=positions.device)
    kinds = (
        [{"layer_type": kind} for kind in _layer_types(model.config)] if family.rope_by_layer_type else [{}]
    )
    tables = [model.model.rotary_emb(like, positions, **kind) for kind in kinds]
    half = tables[0][0].shape[-1] // 2
    cos, sin = (torch.cat([table[i][..., :half] for table in tables]) for i in range(2))
    return cos, sin


def _layer_types(config: Any) -> list[str]:
    return sorted(set(config.layer_types))


def _layer_weights(layer: Any, config: Any, family: Family) -> LayerWeights:
    fields: dict[str, Any] = dict.fromkeys(("input_norm", "q_norm", "k_norm", "post_norm"))
    modules = _modules_in(layer, family)
    for name in MATRICES:
        linears = [layer.get_submodule(n) for n in modules.get(name, ())]
        fields[name] = _stack_weights(linears) if linears else None
        fields[f"{name}_bias"] = _stack_biases(linears) if linears else None
    fields |= {name: layer.get_submodule(module).weight.detach() for name, module in family.norms.items()}
    return LayerWeights(
        **fields,
        window=_window_of(layer.self_attn, config, family),
        rope=_rope_of(layer.self_attn, config, family),
        experts=None if family.experts is None else _experts_of(layer, family.experts),
    )


def _experts_of(layer: Any, names: ExpertNames) -> Experts | None:
    module = _module_or_none(layer, names)
    if module is None:
        return None
    router = layer.get_submodule(names.router).weight.detach()
    return Experts(router, module.gate_up_proj.detach(), module.down_proj.detach())


def _stack_weights(linears: Sequence[nn.Linear]) -> Matrix:
    if _any_quantized(linears):
        return QuantizedMatrix(tuple(Quantized(linear) for linear in linears))
    return stack(linears)


def _stack_biases(linears: Sequence[nn.Linear]) -> torch.Tensor | None:
    """Biases along out; None if there are none, or if the layers are quantized: they add it themselves."""
    if _any_quantized(linears):
        return None
    biases = [None if linear.bias is None else linear.bias.detach() for linear in linears]
    return stack_biases([linear.weight.detach() for linear in linears], biases)


def _any_quantized(linears: Sequence[nn.Module]) -> bool:
    return any(is_quantized(linear) for linear in linears)


def _window_of(attention: Any, config: Any, family: Family) -> int | None:
    window = attention if family.window is None else config
    found: int | None = getattr(window, family.window or "sliding_window", None)
    return found


def _rope_of(attention: Any, config: Any, family: Family) -> int | None:
    """The number of the rotary table of a layer; None if it has none."""
    if family.skips_rope and not attention.use_rope:
        return None
    return (
        _layer_types(config).index(config.layer_types[attention.layer_idx])
        if family.rope_by_layer_type
        else 0
    )
