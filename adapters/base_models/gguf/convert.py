"""Converts a GGUF file into a Hugging Face model directory in bf16.

Quantized tensors are dequantized to fp32 and rounded once to bf16, so the result is what transformers
computes from the same file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from manylora.adapters.base_models.gguf.config import model_config, token_ids
from manylora.adapters.base_models.gguf.file import GgufModel
from manylora.adapters.base_models.gguf.tokenizer import write_tokenizer


def convert_gguf(file: Path, directory: Path, advance: Callable[[int, int], None]) -> None:
    """Write ``model.safetensors`` (bf16), configuration, tokenizer and chat template into ``directory``.

    Args:
        file: the GGUF file.
        directory: an existing, empty directory.
        advance: called with (tensors done, tensors in all).

    Raises:
        BaseModelError: the file holds something that is not converted.
        OSError: writing failed.
    """
    import torch  # noqa: PLC0415  (slow to import; only needed once per model)

    from manylora.adapters.format.saving import save_tensors  # noqa: PLC0415

    model = GgufModel(file)
    write_small_files(model, directory)
    tensors = {}
    for done, name in enumerate(model.tensors):
        advance(done, len(model.tensors))
        tensors[name] = model.read(name).to(torch.bfloat16).contiguous()
    save_tensors(tensors, directory / "model.safetensors", {"format": "pt"})
    advance(len(model.tensors), len(model.tensors))


def write_small_files(model: GgufModel, directory: Path) -> None:
    """Write all that a model directory has beside the weights.

    Raises:
        BaseModelError: the file holds something that is not read.
        OSError: writing failed.
    """
    config = model_config(model)
    write_tokenizer(model, directory)
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", token_ids(model))


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
