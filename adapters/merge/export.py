"""Writes a standalone model: the base with adapters merged in, one shard in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manylora.adapters.base_models.checkpoint import INDEX, WEIGHTS
from manylora.adapters.base_models.layers import is_transposed
from manylora.adapters.errors import DiskFull
from manylora.adapters.format.saving import save_tensors
from manylora.adapters.merge.card import model_card
from manylora.adapters.merge.directory import new_directory
from manylora.adapters.merge.export_plan import ExportPlan, PlannedTensor
from manylora.adapters.merge.served_texts import served_texts
from manylora.adapters.merge.survival import Survival
from manylora.adapters.merge.texts import to_json
from manylora.adapters.merge.verify import Verification, verify
from manylora.adapters.merge.weights import Deltas, merged_bias, merged_weight

Progress = Callable[[int, int], None]  # bytes written, bytes in all

_ROOM = 1.02  # of the tensors' bytes that must be free: headers, tokenizer, file system


@dataclass(frozen=True)
class Exported:
    """A merged model on disk, and what was found when it was compared with the original."""

    directory: Path
    nbytes: int
    shards: int
    verification: Verification | None  # None: it was not asked for
    effect_kept: float  # share of the change of weights that their rounding has left


def export(
    plan: ExportPlan,
    out: Path,
    *,
    compute_dtype: torch.dtype | None = torch.float32,
    progress: Progress | None = None,
) -> Exported:
    """Write the merged model to ``out``, which must not exist: all of it, verified, or nothing.

    Each weight is merged in float32 from the base's stored weight and rounded once. The result is loaded
    with transformers before it is moved to ``out``, and its logits compared with those of the base with the
    adapters beside it, in ``compute_dtype``; None leaves that out.

    Raises:
        StoreError: the disk is too small or refused, or there is something at ``out``.
        MergeFailed: the merged model does not answer like the base with the adapters.
    """
    _check_room(plan, out)
    with new_directory(out) as directory:
        survival = _write_weights(plan, directory, progress)
        _write_config(plan, directory)
        for name, content in served_texts(plan).items():
            (directory / name).write_bytes(content)
        verification = None if compute_dtype is None else verify(plan, directory, compute_dtype)
        (directory / "README.md").write_text(
            model_card(out.name, plan, verification, survival.share), encoding="utf-8"
        )
    return Exported(out, plan.nbytes, len(plan.shards), verification, survival.share)


def _check_room(plan: ExportPlan, out: Path) -> None:
    place = next(parent for parent in out.absolute().parents if parent.exists())
    free, needed = shutil.disk_usage(place).free, int(plan.nbytes * _ROOM)
    if free < needed:
        raise DiskFull(
            f"{out} needs {needed / 1e9:.2f} GB and {place} has {free / 1e9:.2f} GB free: make room there, "
            "or choose another directory or a smaller dtype"
        )


def _write_weights(plan: ExportPlan, directory: Path, progress: Progress | None) -> Survival:
    survival = Survival()
    count, done = len(plan.shards), 0
    index: dict[str, str] = {}
    for number, shard in enumerate(plan.shards, 1):
        file = WEIGHTS if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        tensors = {}
        for tensor in shard:
            tensors[tensor.name] = merged_tensor(plan, tensor, survival)
            index[tensor.name] = file
            done += tensor.nbytes
            if progress is not None:
                progress(done, plan.nbytes)
        save_tensors(tensors, directory / file, {"format": "pt"})
    if count > 1:
        content = {"metadata": {"total_size": plan.nbytes}, "weight_map": index}
        (directory / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return survival


def merged_tensor(plan: ExportPlan, tensor: PlannedTensor, survival: Survival) -> torch.Tensor:
    """One tensor of the result, computed in float32 and rounded once; ``survival`` counts its change."""
    stored = plan.stored.checkpoint[tensor.name]
    if tensor.dtype is None:
        return stored
    if tensor.experts:
        return _merged_experts(stored, tensor.experts, tensor.dtype, survival)
    if tensor.module is None:
        return stored.to(tensor.dtype)
    if tensor.name.endswith(".bias"):
        bias = merged_bias(stored, tensor.deltas, _weight_beside(plan, tensor))
        assert bias is not None
        survival.add(stored, bias, bias.to(tensor.dtype))
        return bias.to(tensor.dtype)
    transposed = is_transposed(plan.stored.skeleton.get_submodule(tensor.module))
    base = stored.T if transposed else stored
    merged = merged_weight(base, tensor.deltas)
    rounded = merged.to(tensor.dtype)
    survival.add(base, merged, rounded)
    return (rounded.T if transposed else rounded).contiguous()


def _merged_experts(
    stored: torch.Tensor, experts: Sequence[Deltas], dtype: torch.dtype, survival: Survival
) -> torch.Tensor:
    """The matrix of an expert, or those of all [E, out, in], merged one after the other."""
    result = stored.to(dtype, copy=True)
    matrices = zip(
        stored.view(len(experts), *stored.shape[-2:]),
        result.view(len(experts), *stored.shape[-2:]),
        experts,
        strict=True,
    )
    for base, merged, deltas in matrices:
        if deltas:
            exact = merged_weight(base, deltas)
            merged.copy_(exact)
            survival.add(base, exact, merged)
    return result


def _weight_beside(plan: ExportPlan, bias: PlannedTensor) -> torch.Tensor | None:
    """The base's weight [out, in] of the module whose bias that is, if an adapter needs it."""
    if bias.module is None or not any(delta.shifts for delta, _ in bias.deltas):
        return None
    weight = plan.stored.checkpoint[f"{bias.module}.weight"]
    return weight.T if is_transposed(plan.stored.skeleton.get_submodule(bias.module)) else weight


def _write_config(plan: ExportPlan, directory: Path) -> None:
    """The base's configuration, with the dtype of the result, and no quantization: there is none."""
    config = json.loads((plan.stored.directory / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    _set_dtype(config, plan.dtype)
    (directory / "config.json").write_bytes(to_json(config))


def _set_dtype(config: dict[str, Any], dtype: torch.dtype | None) -> None:
    """transformers calls it ``dtype`` since version 5, ``torch_dtype`` before."""
    if dtype is None:
        return
    old = "torch_dtype" in config and "dtype" not in config
    config["torch_dtype" if old else "dtype"] = str(dtype).removeprefix("torch.")
