"""Which widths of layers bitsandbytes computes in 4 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from manylora.adapters.format.faults import some

_BLOCK = 64  # weights that share one scale in 4 bits
_PACKED_OUTPUTS = 32  # that the kernels for AVX-512 BF16 take together


def unfit_for_nf4(config: Any, device: torch.device) -> str | None:
    """Why a causal LM with this transformers ``config`` can't be computed in NF4 on ``device``; None: it can.

    Only the layers' sizes are looked at: no weights are read.
    """
    from bitsandbytes.functional import has_avx512bf16  # noqa: PLC0415  (slow to import, and an extra)

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    packed = device.type == "cpu" and has_avx512bf16()
    wrong = [
        f"{name} ({inputs} to {outputs})"
        for name, (inputs, outputs) in _widths(model).items()
        if inputs % _BLOCK or (packed and outputs % _PACKED_OUTPUTS)
    ]
    if not wrong:
        return None
    multiple = f"and outputs in multiples of {_PACKED_OUTPUTS} " if packed else ""
    return (
        f"bitsandbytes needs inputs in multiples of {_BLOCK} {multiple}on {device.type}, "
        f"which {some(wrong, len(wrong))} {'is' if len(wrong) == 1 else 'are'} not"
    )


def _widths(model: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the layers that transformers quantizes: all linear ones but the output head."""
    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            found[name] = (module.weight.shape[0], module.weight.shape[1])
        elif type(module) is nn.Linear and module is not head:
            found[name] = (module.in_features, module.out_features)
    return found
