"""Whether a run trains with the fused decoder, and the check that it computes what the model does.

It does for LoRA (DoRA, rsLoRA, LoRA+, patterns and dropout included) on the Llama family in bf16, fp32 or
NF4, in one process. Everything else trains through the module tree of transformers and PEFT.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant

from manylora.adapters.fidelity.measures import relative_distance
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.decoder.build import ADAPTED, Adapter, DecoderBuilder, unwrapped
from manylora.adapters.training.decoder.decoder import FusedDecoder, packed
from manylora.adapters.training.decoder.weights import is_nf4
from manylora.adapters.training.model.forward import learned_ids
from manylora.adapters.training.model.pairs import lora_pairs

logger = logging.getLogger(__name__)

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
ROPES = frozenset({"default", "linear", "llama3", "yarn"})  # whose angles depend on the position alone
PROBE_TOKENS = 24  # of each of two sequences
ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # distance of hidden states from the model's


def fused_decoder(
    model: Any, adapters: Sequence[Adapter], config: TrainConfig, items: Sequence[Item]
) -> FusedDecoder | None:
    """The fused decoder of ``model`` with ``adapters``; None where the module tree has to do.

    Args:
        model: the causal LM itself, its layers wrapped by PEFT or not.
        adapters: module of the base -> matrices.
        config: of the run, or of any of the jobs that share the model.
        items: sequences, on the first of which both are compared.
    """
    reason = unfit(model, adapters, config)
    if reason is None:
        builder = DecoderBuilder(
            model, adapters, dropout=config.lora_dropout, is_checkpointed=config.gradient_checkpointing
        )
        decoder = builder.build()
        distance = probe_distance(model, decoder, [learned_ids(item)[0] for item in items[:2]])
        if distance <= ALLOWED[decoder.dtype]:
            return decoder
        reason = f"its hidden states differ from the model's by {distance:.2%}"
    logger.info("training through transformers' modules: %s", reason)
    return None


def fused_peft(model: Any, config: TrainConfig, items: Sequence[Item]) -> FusedDecoder | None:
    """The fused decoder of a base with PEFT's LoRA on it, on the same matrices."""
    if not config.is_lora:
        return None
    return fused_decoder(model.get_base_model(), [dict(lora_pairs(model))], config, items)


def unfit(model: Any, adapters: Sequence[Adapter], config: TrainConfig) -> str | None:
    """Why the fused decoder can't train ``model``; None where it can."""
    return _unfit_run(config) or _unfit_model(model) or _unfit_adapters(model, adapters)


def _unfit_run(config: TrainConfig) -> str | None:
    given = {
        "method": not config.is_lora,
        "task": config.task != "sft",
        "quantization": config.quantization == "int8",
        "modules_to_save": bool(config.modules_to_save),
    }
    found = next((name for name, is_given in given.items() if is_given), None)
    if found is not None:
        return f"{found} {getattr(config, found)}"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "several processes"
    return None


def _unfit_model(model: Any) -> str | None:
    config = model.config
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    conditions = {
        f"activation {config.hidden_act}": config.hidden_act != "silu",
        f"rope {rope}": rope not in ROPES,
        "sliding windows": kinds != {"full_attention"} or _has_window(config),
        "attention dropout": bool(getattr(config, "attention_dropout", 0.0)),
        "a dtype other than bf16 and fp32": model.model.norm.weight.dtype not in ALLOWED,
        "a GPU without bf16": model.device.type == "cuda" and model.dtype != torch.bfloat16,
    }
    return next((reason for reason, holds in conditions.items() if holds), None)


def _has_window(config: Any) -> bool:
    window = getattr(config, "sliding_window", None)
    return window is not None and bool(getattr(config, "use_sliding_window", True))


def _unfit_adapters(model: Any, adapters: Sequence[Adapter]) -> str | None:
    for adapter in adapters:
        other = next((name for name in adapter if not _is_adapted(name)), None)
        if other is not None:
            return f"an adapter on {other}"
    for module in model.modules():
        if isinstance(module, LoraLayer) and _is_special(module):
            return "a variant of LoRA"
    quantized = [is_nf4(unwrapped(m.get_submodule(name))) for m in model.model.layers for name in ADAPTED]
    frozen = [p for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    if frozen:
        return "weights of the base that are trained"
    return None if all(quantized) or not any(quantized) else "layers of several kinds"


def _is_adapted(name: str) -> bool:
    parts = name.split(".", 3)
    return parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[3] in ADAPTED


def _is_special(module: Any) -> bool:
    has_bias = any(bool(getattr(layer, "bias", None) is not None) for layer in module.lora_B.values())
    is_variant = any(not isinstance(found, DoraLinearVariant) for found in module.lora_variant.values())
    return is_variant or bool(module.lora_embedding_A) or has_bias


@torch.no_grad()
def probe_distance(model: Any, decoder: FusedDecoder, probe: Sequence[Sequence[int]]) -> float:
    """How far the decoder's hidden states are from those of the model's own modules.

    With the adapter where PEFT has put it on the model; of the base alone for adapters that are not on it.
    """
    rows = [list(ids[:PROBE_TOKENS]) for ids in probe]
    was_training = model.training
    model.eval()
    is_on = any(isinstance(module, LoraLayer) for module in model.modules())
    own = decoder.hidden(packed(rows, decoder.device, decoder.adapters, 0 if is_on else None)).float()
    theirs = torch.cat(
        [model.model(torch.tensor([ids], device=decoder.device)).last_hidden_state[0].float() for ids in rows]
    )
    model.train(was_training)
    return float(relative_distance(theirs, own))
