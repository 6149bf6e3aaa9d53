"""The model of a checkpoint that is quantized already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manylora.adapters.base_models.configuration import BITSANDBYTES, PackedFormat
from manylora.adapters.base_models.generation import Generation
from manylora.adapters.base_models.outline import skeleton_of
from manylora.server.model.loading.packed.assembly import assemble
from manylora.server.model.loading.packed.bitsandbytes import bitsandbytes_weights, kind_of
from manylora.server.model.loading.packed.gguf import gguf_weights
from manylora.server.model.loading.packed.groups import group_weights


@dataclass(frozen=True)
class BuiltModel:
    """A Hugging Face model on its device, and what its weights are."""

    hf: Any
    fingerprint: str
    quantization: str  # "none", or what its linear layers are kept in


def load_packed(
    directory: Path, packed: PackedFormat, generation: Generation, dtype: torch.dtype, device: torch.device
) -> BuiltModel:
    """Load what ``packed`` says of ``directory``, its codes to ``device``.

    Raises:
        ModelRefused: of a variant or a type that is not served, by its name, or not complete.
        BaseModelError: its files can't be read.
    """
    config, skeleton = skeleton_of(directory)
    if packed.method == "gguf":
        weights = gguf_weights(directory, dtype, device)
    elif packed.method == BITSANDBYTES:
        weights = bitsandbytes_weights(directory, dtype, device)
    else:
        weights = group_weights(directory, packed.settings, dtype, device)
    model, digest = assemble(
        str(directory), skeleton, config, generation=generation, weights=weights, dtype=dtype
    )
    method = kind_of(weights) if packed.method == BITSANDBYTES else packed.method
    return BuiltModel(model.to(device), digest, method if weights.codes else "none")
