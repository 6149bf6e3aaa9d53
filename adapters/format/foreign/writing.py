"""From PEFT's form to that of another tool, as far as it has a place for what the adapter does."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

import torch

from manylora.adapters.format.artifact import Artifact
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.faults import Faults, some
from manylora.adapters.format.files import CONFIG_NAME
from manylora.adapters.format.foreign.change import Change, LowRank
from manylora.adapters.format.foreign.gguf.adapter import write_gguf_adapter
from manylora.adapters.format.foreign.mlx import WEIGHTS, mlx_form
from manylora.adapters.format.saving import save_tensors
from manylora.adapters.format.weights.delta import ModuleDelta


class Form(StrEnum):
    """A form that an adapter can be written in."""

    PEFT = "peft"
    MLX = "mlx"
    GGUF = "gguf"


_TOOLS = {Form.MLX: "MLX-LM", Form.GGUF: "GGUF"}
_HELD = {Form.MLX: frozenset({"LORA", "LORA+DORA"}), Form.GGUF: frozenset({"LORA", "LORA+ALORA"})}
_PLAIN = {"a", "b", "scaling", "magnitude"}  # of a module's change: what LoRA and DoRA consist of


def write_mlx(artifact: Artifact, directory: Path, base: BaseModel) -> None:
    """Write MLX-LM's two files into ``directory``.

    Raises:
        ArtifactError: MLX-LM has no place for something of the adapter; names it.
        OSError: the disk refused.
    """
    faults = Faults()
    change = _change(artifact, Form.MLX, faults)
    config, tensors = mlx_form(change, base, artifact.base_model_name, faults)
    faults.raise_any()
    plain = {name: tensor.contiguous().clone() for name, tensor in sorted(tensors.items())}
    save_tensors(plain, directory / WEIGHTS, {"format": "mlx"})
    (directory / CONFIG_NAME).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def write_gguf(artifact: Artifact, path: Path, base: BaseModel) -> None:
    """Write llama.cpp's one file.

    Raises:
        ArtifactError: GGUF has no place for something of the adapter; names it.
        OSError: the disk refused.
    """
    faults = Faults()
    change = _change(artifact, Form.GGUF, faults)
    if not len(faults):
        write_gguf_adapter(change, path, base, faults)
    faults.raise_any()


def _change(artifact: Artifact, form: Form, faults: Faults) -> Change:
    """What the adapter does, where the form can hold it; everything that it can't is a fault."""
    tool = _TOOLS[form]
    if artifact.kind not in _HELD[form]:
        held = " and ".join(sorted(_HELD[form]))
        faults.add(f"{tool} can't hold an adapter of the kind {artifact.kind}: only {held}")
    elif artifact.vocabulary is not None:
        faults.add(f"changes to the embeddings or the output head are not written for {tool}")
    elif artifact.experts:
        faults.add(f"changes to experts are not written for {tool}")
    elif any(not _is_plain(delta) for delta in artifact.delta.values()):
        others = [name for name, delta in artifact.delta.items() if not _is_plain(delta)]
        faults.add(f"{tool} can't hold what the adapter does to {some(others, len(others))}")
    modules = {
        name: LowRank(delta.a, delta.b, delta.scaling, delta.magnitude)
        for name, delta in artifact.delta.items()
        if _is_plain(delta)
    }
    tokens = artifact.activation
    return Change(modules, options={} if tokens is None else {"alora_invocation_tokens": list(tokens)})


def _is_plain(delta: ModuleDelta) -> bool:
    parts = {name: getattr(delta, name) for name in ModuleDelta.__slots__}
    return delta.rank > 0 and all(name in _PLAIN or not _is_given(part) for name, part in parts.items())


def _is_given(part: object) -> bool:
    return isinstance(part, torch.Tensor) or (part is not None and part not in (0, 1, False, True, ()))
