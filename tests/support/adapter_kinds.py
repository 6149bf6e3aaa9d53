"""Adapters of every PEFT kind that acts on linear layers, and two ways to compute what they should do."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from manylora.adapters.base_models.norms import is_norm, norm_with
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.weights.delta import ModuleDelta
from tests.support.adapter_set import LLAMA_TARGETS, TARGETS
from tests.support.adapters import write_kind
from tests.support.peft_oracle import Peft, read

_NORM_KINDS = ("norms", "some-norms")
NORMS = ".*(norm|ln_[12f])"  # the names of all norms, whatever the family
_SAVED_NORMS = {"gpt2": ("ln_1", "ln_2", "ln_f")}  # endings of their names; "norm" in the other families
_LAST_NORM = {"gpt2": "ln_f", "gpt_neox": "gpt_neox.final_layer_norm", "opt": "decoder.final_layer_norm"}


def write_kinds(root: Path, model: Path, family: str) -> dict[str, Path]:
    """One adapter of each kind, with the options that matter to it."""
    attention, mlp = ([*names] for names in TARGETS.get(family, LLAMA_TARGETS))
    lora: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
    down = mlp[-1]
    norms, last = [*_SAVED_NORMS.get(family, ("norm",))], _LAST_NORM.get(family, "model.norm")
    conv: dict[str, Any] = {"fan_in_fan_out": True} if family == "gpt2" else {}
    configs: dict[str, dict[str, Any]] = {
        "plain": {**lora, "target_modules": "all-linear"},
        "dora": {**lora, "target_modules": "all-linear", "use_dora": True, "rank_pattern": {down: 3}},
        "dora-rslora": {
            **lora,
            "target_modules": attention,
            "use_dora": True,
            "use_rslora": True,
            "layers_to_transform": [1],
        },
        "lora-bias": {**lora, "target_modules": [attention[0], down], "lora_bias": True},
        "bias-targets": {**lora, "target_modules": [attention[-1], *mlp], "bias": "lora_only"},
        "bias-all": {**lora, "target_modules": [attention[0]], "bias": "all"},
        "dora-bias": {**lora, "target_modules": "all-linear", "use_dora": True, "bias": "lora_only"},
        "ia3": {"peft_type": "IA3", "target_modules": [*attention, down], "feedforward_modules": [down]},
        "ia3-inputs": {
            "peft_type": "IA3",
            "target_modules": "all-linear",
            "feedforward_modules": f".*({attention[0]}|{mlp[0]})",
            "exclude_modules": [attention[-1]],
        },
        "vera": {
            "peft_type": "VERA",
            "r": 24,
            "target_modules": [*attention, *mlp],
            "layers_to_transform": [0],
        },
        "vera-seed": {
            "peft_type": "VERA",
            "r": 40,
            "target_modules": "all-linear",
            "save_projection": False,
            "projection_prng_key": 1234567,
        },
        "norms": {"peft_type": "LN_TUNING", "target_modules": NORMS},
        "some-norms": {"peft_type": "LN_TUNING", "target_modules": f".*1{NORMS}"},
        "saved-norms": {
            **lora,
            "target_modules": attention,
            "bias": "lora_only",
            "modules_to_save": norms,
        },
        "dora-saved-norm": {**lora, "target_modules": mlp, "use_dora": True, "modules_to_save": [last]},
        "ia3-saved-norms": {
            "peft_type": "IA3",
            "target_modules": [*attention, down],
            "feedforward_modules": [],
            "modules_to_save": norms,
        },
    }
    return {
        name: write_kind(root / name, model, seed=seed, **(config if name in _NORM_KINDS else config | conv))
        for seed, (name, config) in enumerate(configs.items(), 1)
    }


class PeftPerAdapter:
    """PEFT with a model of its own for each adapter: trained biases would replace those of the others."""

    def __init__(
        self,
        directory: Path,
        paths: Mapping[str, Path],
        dtype: torch.dtype = torch.float32,
        quantize: str = "none",
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on biases, projections and Conv1D
            self._of = {
                name: Peft(directory, {} if name is None else {name: paths[name]}, dtype, quantize)
                for name in (None, *paths)
            }

    def logits(self, ids: Sequence[int], adapter: str | None) -> torch.Tensor:
        """Logits [T, V] of a full forward over ``ids``."""
        return self._of[adapter].logits(ids, adapter)


class HookedModel:
    """The base model, to which hooks add mixes as :class:`ModuleDelta` defines them."""

    def __init__(self, directory: Path, base: BaseModel, paths: Mapping[str, Path]) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self._deltas = {name: read(path, base).delta for name, path in paths.items()}

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], mix: Sequence[tuple[str, float]]) -> torch.Tensor:
        """Logits [T, V] of a full forward over ``ids`` with the mix."""
        with self._running(mix):
            logits: torch.Tensor = self._model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return logits

    @contextmanager
    def _running(self, mix: Sequence[tuple[str, float]]) -> Any:
        names = {module for name, _ in mix for module in self._deltas[name]}
        handles = []
        for module in names:
            members = [(self._deltas[n][module], w) for n, w in mix if module in self._deltas[n]]
            hook = partial(_add_changes, members)
            handles.append(self._model.get_submodule(module).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _add_changes(
    members: Sequence[tuple[ModuleDelta, float]],
    layer: nn.Module,
    args: tuple[torch.Tensor, ...],
    output: torch.Tensor,
) -> torch.Tensor:
    return output + sum(weight * _change(delta, layer, args[0], output) for delta, weight in members)


def _change(delta: ModuleDelta, layer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What the adapter alone adds to the layer's output ``y``, in float64."""
    if is_norm(layer):
        changed: torch.Tensor = norm_with(layer, delta.scale, delta.bias)(x) - y
        return changed
    own = layer.bias if delta.bias is None else delta.bias
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    weight, inputs, low_rank = (
        weight.double(),
        x.double(),
        _low_rank(delta, weight),
    )
    total = weight + low_rank
    if delta.magnitude is not None:
        total = total * (delta.magnitude.double() / total.norm(dim=1))[:, None]
    if delta.input_scale is not None:
        total = total * delta.input_scale
    result = inputs @ total.T
    result = result if own is None else result + own
    result = result if delta.output_scale is None else result * delta.output_scale
    result = result if delta.b_bias is None else result + delta.scaling * delta.b_bias
    if delta.shifts:
        result = result + delta.shift(weight, layer.bias)
    change: torch.Tensor = (result - y).float()
    return change


def _low_rank(delta: ModuleDelta, weight: torch.Tensor) -> torch.Tensor:
    a, b = delta.factors(weight)
    return b.double() @ a.double()
