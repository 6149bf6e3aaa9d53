"""llama.cpp's names for the modules of a base, and how it orders their rows.

What an architecture does to its weights is in llama.cpp's converter, a class for each. Listed here are those
of which it is known; an adapter for any other is refused by name, since a row in the wrong place is no fault
that anybody would see.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.foreign.fused.roles import Rows, qkv_rows

# transformers' model_type -> llama.cpp's architecture
ARCHITECTURES: Mapping[str, str] = {
    "apertus": "apertus",
    "arcee": "arcee",
    "cohere": "command-r",
    "falcon": "falcon",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "granite": "granite",
    "llama": "llama",
    "mistral": "llama",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "phi": "phi2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "starcoder2": "starcoder2",
}
_ROTARY_PAIRS = frozenset(
    {"apertus", "arcee", "granite", "llama", "olmo", "smollm3"}
)  # q and k are reordered
_FUSED_BY_GROUP = frozenset({"falcon", "gptneox"})  # query_key_value is reordered to q, k, v
_TURNED = frozenset({"gpt2"})  # Conv1D, whose A and B llama.cpp's converter exchanges


@dataclass(frozen=True)
class GgufBase:
    """A base by llama.cpp's names."""

    architecture: str
    modules: Mapping[str, str]  # llama.cpp's name, without ".weight" -> the base's
    embedding: str | None  # llama.cpp's name of the input embeddings
    base: BaseModel

    @property
    def is_turned(self) -> bool:
        """Whether llama.cpp's converter exchanges A and B of this architecture."""
        return self.architecture in _TURNED

    def row_order(self, module: str) -> torch.Tensor | str | None:
        """``file[i] = base[order[i]]`` for the rows of B; None where they are alike, or why it is unknown."""
        last, rows = module.rpartition(".")[2], self.base.modules[module].out_features
        heads = self.base.heads
        reordered = self.architecture in _ROTARY_PAIRS and last in ("q_proj", "k_proj")
        grouped = self.architecture in _FUSED_BY_GROUP and last == "query_key_value"
        if not reordered and not grouped:
            return None
        if heads is not None and grouped:
            heads = heads.of_fused(rows)
        if heads is None:
            return "the base's attention heads are not known"
        if grouped:
            parts = qkv_rows(heads.sizes, Rows.BY_GROUP, heads)
            return parts if isinstance(parts, str) else torch.cat(parts)
        count = heads.query if last == "q_proj" else heads.key_value
        if rows % (2 * count):
            return "its rows are not those of the base's attention heads"
        return rotary_order(rows, count)


def rotary_order(rows: int, heads: int) -> torch.Tensor:
    """For each row in GGUF's order its row in Hugging Face's, which keeps the halves of a head apart."""
    return torch.arange(rows).view(heads, 2, rows // heads // 2).transpose(1, 2).reshape(-1)


def gguf_base(base: BaseModel) -> GgufBase | None:
    """The base by llama.cpp's names; None where its architecture is not listed."""
    import gguf  # noqa: PLC0415  (slow to import)

    architecture = ARCHITECTURES.get(base.model_type)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture is None or architecture not in kinds:
        return None
    blocks = [int(n) for name in base.modules for n in re.findall(r"\.(\d{1,5})\.", name)[:1]]
    names = gguf.get_tensor_name_map(kinds[architecture], max(blocks, default=0) + 1)
    modules = {}
    vocabulary = base.vocabulary
    for module in (*base.modules, *(() if vocabulary is None else (vocabulary.head,))):
        found = names.get_name(module)
        if found is not None:
            modules[found] = module
    embedding = None if vocabulary is None else names.get_name(vocabulary.embedding)
    return GgufBase(architecture, modules, embedding, base)
