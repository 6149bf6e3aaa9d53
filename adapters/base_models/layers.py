"""Which layers of a Hugging Face model adapters change, and how large they are."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from manylora.adapters.base_models.norms import is_norm
from manylora.adapters.format.base import AttentionHeads, BaseVocabulary, CacheShape, TargetModule
from manylora.adapters.format.experts import ExpertStack


def is_transposed(module: nn.Module) -> bool:
    """Whether the module keeps its weight as [in, out] (GPT-2's Conv1D)."""
    return isinstance(module, Conv1D)


def target_of(name: str, module: Any) -> TargetModule:
    """A norm, a Conv1D or anything that has the sizes of an ``nn.Linear``, as adapters see it."""
    if is_norm(module):
        width = len(module.weight)
        return TargetModule(name, width, width, bias=getattr(module, "bias", None) is not None, linear=False)
    if is_transposed(module):
        return TargetModule(name, module.weight.shape[0], module.weight.shape[1], bias=True, transposed=True)
    return TargetModule(name, module.in_features, module.out_features, module.bias is not None)


def experts_of(model: Any) -> tuple[ExpertStack, ...]:
    """The parameters of a model that hold all experts of a layer: those of gate and up, then of down."""
    found = []
    for name, module in model.named_modules():
        gate_up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
        if not (isinstance(gate_up, nn.Parameter) and isinstance(down, nn.Parameter)):
            continue
        if gate_up.ndim != 3 or down.ndim != 3 or getattr(module, "is_transposed", False):
            continue
        (count, _, width), inner = gate_up.shape, down.shape[2]
        if gate_up.shape[1] != 2 * inner or down.shape != (count, width, inner):
            continue
        found.append(ExpertStack(f"{name}.gate_up_proj", count, width, 2 * inner))
        found.append(ExpertStack(f"{name}.down_proj", count, inner, width))
    return tuple(found)


def describe_vocabulary(model: Any) -> BaseVocabulary | None:
    """The tables at both ends of ``model``; None if they are not of one size."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        return None
    if embedding.weight.shape[0] != head.weight.shape[0]:
        return None
    names = {id(module): name for name, module in model.named_modules()}
    return BaseVocabulary(
        embedding=names[id(embedding)],
        head=names[id(head)],
        size=embedding.weight.shape[0],
        width=embedding.weight.shape[1],
        head_width=head.weight.shape[1],
        tied=embedding.weight is head.weight,
        head_bias=head.bias is not None,
    )


def describe_cache(config: Any) -> CacheShape | None:
    """What ``config`` says that a position has in the KV cache, read as PEFT does; None if it is silent."""
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    heads, width = getattr(text, "num_attention_heads", None), getattr(text, "hidden_size", None)
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(width, int)):
        return None
    size = getattr(text, "head_dim", None) or width // heads
    return CacheShape(layers, getattr(text, "num_key_value_heads", None) or heads, size)


def describe_heads(config: Any) -> AttentionHeads | None:
    """The attention heads by a transformers config; None where it does not give one number for all blocks."""
    text = config.get_text_config()
    query = getattr(text, "num_attention_heads", None)
    key_value = getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None) or query
    width = getattr(text, "head_dim", None)
    hidden = getattr(text, "hidden_size", None)
    if width is None and isinstance(hidden, int) and isinstance(query, int) and query > 0:
        width = hidden // query
    counts = [count for count in (query, key_value, width) if isinstance(count, int) and count > 0]
    return AttentionHeads(*counts) if len(counts) == 3 and counts[0] % counts[1] == 0 else None
