"""AdaLoRA: LoRA with singular values, of which the smallest were pruned (https://arxiv.org/abs/2303.10512).

ΔW = s B (E ⊙ A), with s = alpha / (init_r + 1e-5) whatever was pruned. ``rank_pattern`` says which ranks each
module has kept, and the file holds those only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config import support
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import BIAS, EMPTY, EXCLUDE, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults, some
from manylora.adapters.format.kinds.rows import EVERY_KIND, SAME_ON_CONV1D, training_only
from manylora.adapters.format.kinds.updates import Factors, LowRank
from manylora.adapters.format.update import KindLayout, ModulePlan, Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX

_ADDED = 1e-5  # to init_r, by PEFT


@dataclass(frozen=True, slots=True)
class AdaLora:
    """What a config of AdaLoRA says."""

    rank: int  # before pruning
    alpha: float
    kept: Mapping[str, int]  # module -> ranks that it has kept; all, where it is not named

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        strangers = sorted(self.kept.keys() - {module.name for module in targets})
        if strangers:
            faults.add(f"rank_pattern names {some(strangers, len(strangers))}: no target modules")
        return KindLayout({m.name: self._plan(m, self.kept.get(m.name, self.rank)) for m in targets})

    def _plan(self, module: TargetModule, rank: int) -> ModulePlan:
        prefix = f"{PREFIX}{module.name}"
        slots = {
            "a": Slot(f"{prefix}.lora_A", (rank, module.in_features)),
            "b": Slot(f"{prefix}.lora_B", (module.out_features, rank)),
            "e": Slot(f"{prefix}.lora_E", (rank, 1)),
        }
        return ModulePlan(slots, partial(self._update, rank), rank)

    def _update(self, rank: int, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        return LowRank(rank, rank, partial(self._factors, tensors))

    def _factors(self, tensors: Mapping[str, torch.Tensor]) -> Factors:
        scaling = self.alpha / (self.rank + _ADDED)
        b = tensors["b"].float() * tensors["e"].float().flatten() * scaling
        return tensors["a"].float(), b


def _parse(reader: ConfigReader) -> AdaLora:
    rank = reader.count("init_r", 12)
    alpha = reader.alpha("lora_alpha", reader.value("lora_alpha", 8))
    masks = reader.masks("rank_pattern", rank)
    return AdaLora(rank, alpha, {_module(name): sum(mask) for name, mask in masks.items()})


def _module(name: str) -> str:
    """The module of "model.layers.0.q_proj.lora_E", or of that with the name of the adapter behind it."""
    module, mark, _ = name.rpartition(".lora_E")
    return module if mark else name


_OF_LORA = {option.key: option for option in support.OPTIONS["LORA"]}
_BESIDE = "it is not served beside AdaLoRA"

ADALORA = WeightKind(
    "ADALORA",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        Option(
            "init_r", Treatment.SERVED, "1 up to the server's --max-lora-rank, unless it was pruned to less"
        ),
        Option("rank_pattern", Treatment.SERVED, "the ranks that were kept, of each module"),
        Option("lora_alpha", Treatment.SERVED, "any positive number; the scaling is alpha / init_r"),
        *(
            Option(key, Treatment.NO_EFFECT, "AdaLoRA does not read it")
            for key in ("r", "use_rslora", "alpha_pattern", "lora_bias")
        ),
        *training_only(
            "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"
        ),
        *(
            _OF_LORA[key]
            for key in (
                "lora_dropout",
                "init_lora_weights",
                "loftq_config",
                "eva_config",
                "corda_config",
                "lora_ga_config",
                "runtime_config",
                "qalora_group_size",
                "megatron_core",
            )
        ),
        *(option for option in _OF_LORA.values() if option.treatment is Treatment.REFUSED),
        Option("use_dora", Treatment.REFUSED, "PEFT has no DoRA of AdaLoRA"),
        Option("trainable_token_indices", Treatment.REFUSED, _BESIDE, off=EMPTY),
        Option("target_parameters", Treatment.REFUSED, _BESIDE, off=EMPTY),
        Option("alora_invocation_tokens", Treatment.REFUSED, _BESIDE, off=(None,)),
        Option("ensure_weight_tying", Treatment.REFUSED, _BESIDE),
        SAME_ON_CONV1D,
        BIAS,
    ),
    parse=_parse,
    endings=("lora_A", "lora_B", "lora_E"),
    form="s B (E ⊙ A)",
    rank="the ranks that were kept",
    cost="as LoRA of those ranks",
)
