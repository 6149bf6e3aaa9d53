"""The weights of a GGUF file, in the blocks that it has."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import torch

from manylora.adapters.base_models.directory import GGUF_LINK
from manylora.adapters.base_models.gguf.file import GgufModel
from manylora.adapters.format.faults import some
from manylora.adapters.format.foreign.gguf.reader import PLAIN
from manylora.server.errors import ModelRefused
from manylora.server.model.loading.packed.assembly import PackedWeights
from manylora.server.model.loading.packed.blocks import BLOCK_TYPES, block_codes

logger = logging.getLogger(__name__)


def gguf_weights(directory: Path, dtype: torch.dtype, device: torch.device) -> PackedWeights:
    """The tensors of the GGUF file that ``directory`` was made for.

    Raises:
        ModelRefused: a type is not served, by its name.
        BaseModelError: the file is damaged.
    """
    model = GgufModel((directory / GGUF_LINK).resolve())
    served = {*BLOCK_TYPES, *PLAIN}
    strange = {t.name: t.kind for t in model.tensors.values() if t.kind not in served}
    if strange:
        kinds = ", ".join(sorted(set(strange.values())))
        raise ModelRefused(
            f"{model.name}: the types {kinds} are not served ({some(strange, len(strange))}): "
            f"{', '.join(BLOCK_TYPES)}, {', '.join(PLAIN)} are"
        )
    counts = Counter(tensor.kind for tensor in model.tensors.values())
    logger.info("%s: %s", model.name, ", ".join(f"{n} tensors of {kind}" for kind, n in counts.most_common()))
    codes, plain = {}, {}
    for name, tensor in model.tensors.items():
        if tensor.kind in PLAIN:
            plain[name] = model.read(name).to(dtype)
        else:
            codes[name.removesuffix(".weight")] = block_codes(tensor.kind, model.blocks(name).to(device))
    return PackedWeights(codes, plain)
