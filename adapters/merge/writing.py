"""Writes a LoRA adapter as PEFT does, so that PEFT computes exactly the factors that are given."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.config.targets import names_meaning
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.format.provenance import Provenance
from manylora.adapters.format.saving import save_tensors
from manylora.adapters.format.weights.expected_tensors import PREFIX, stack_keys, tensor_keys
from manylora.adapters.merge.card import made_by
from manylora.adapters.merge.directory import new_directory
from manylora.adapters.merge.experts.stacking import stack_experts
from manylora.adapters.merge.lowrank import Factors

README = "README.md"


def write_adapter(
    out: Path,
    modules: Mapping[str, Factors],
    *,
    b_biases: Mapping[str, torch.Tensor],
    base: BaseModel,
    lineage: Mapping[str, Any],
    texts: Mapping[str, bytes],
) -> None:
    """Write ``adapter_config.json``, float32 weights and a README to ``out``, all of it or nothing.

    ``modules`` are linear layers and matrices of experts, which are stacked. ``b_biases`` [out] are added to
    the outputs; if there is any, every module gets one (lora_bias), and no expert may be among them.
    ``texts``: the tokenizer and template files.

    Raises:
        StoreError: there is something at ``out`` already, or the disk refused.
    """
    provenance = Provenance(base_fingerprint=base.fingerprint, lineage=lineage)
    linear = {name: factors for name, factors in modules.items() if name in base.modules}
    stacks = {name: found for name, s in base.experts.items() if (found := stack_experts(s, modules))}
    tensors = {}
    for name, factors in linear.items():
        a, b = tensor_keys(name)
        tensors[a], tensors[b] = factors.a.contiguous(), factors.b.contiguous()
        if b_biases:
            zero = torch.zeros(factors.b.shape[0])
            tensors[f"{PREFIX}{name}.lora_B.bias"] = b_biases.get(name, zero).contiguous()
    for name, (factors, _) in stacks.items():
        a, b = stack_keys(base.experts[name], stacks, base)
        tensors[a], tensors[b] = factors.a, factors.b
    ranks = {name: factors.rank for name, factors in linear.items()}
    ranks |= {name: rank for name, (_, rank) in stacks.items()}
    config = adapter_config(ranks, base, lora_bias=bool(b_biases))
    with new_directory(out) as directory:
        (directory / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, directory / WEIGHTS_NAME, provenance.metadata())
        for name, content in texts.items():
            (directory / name).write_bytes(content)
        (directory / README).write_text(_card(out.name, base.name, lineage), encoding="utf-8")


def adapter_config(ranks: Mapping[str, int], base: BaseModel, *, lora_bias: bool) -> dict[str, Any]:
    """A LoRA config in which every module and stack of experts has its own rank and the scaling is exactly 1.

    alpha equals the rank everywhere: ``alpha_pattern`` and ``rank_pattern`` have the same entries, full
    names of those that deviate from the commonest rank.
    """
    stacks = [name for name in ranks if name in base.experts]
    linear = [name for name in ranks if name not in base.experts]
    parameters = {"target_parameters": names_meaning(stacks, base.experts)} if stacks else {}
    commonest = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {name: rank for name, rank in ranks.items() if rank != commonest}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": commonest,
        "lora_alpha": commonest,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": names_meaning(linear, [*base.modules, *base.others]),
        **parameters,
        "use_rslora": False,
        "use_dora": False,
        "lora_bias": lora_bias,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _card(name: str, base: str, lineage: Mapping[str, Any]) -> str:
    members = "\n".join(
        f"| {m['name']} | `{m['digest'][:12]}` | {m['weight']:g} |" for m in lineage["members"]
    )
    settings = ", ".join(
        f"{key} {lineage[key]}" for key in ("rank", "density", "seed", "sign_method") if key in lineage
    )
    method, lost = lineage["method"], lineage["energy_lost"]
    how = f"`{method}` ({settings})" if settings else f"`{method}`"
    quality = f"Cut to its rank it lost {lost:.3%} of its energy."
    if method == "linear":
        quality = "The sum is exact."
    return f"""---
base_model: {json.dumps(base)}
library_name: peft
---

# {name}

Composed by manylora {made_by()} with the method {how}.
{quality}

| member | revision | weight |
|---|---|---|
{members}
"""
