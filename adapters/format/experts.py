"""Routed experts as adapters see them: a parameter for all of a layer, or linear layers each in older files.

transformers keeps the matrices of all experts of a layer in one parameter since its version 5, and PEFT puts
LoRA on that (``target_parameters``). Before, each was a linear layer of its own, gate and up apart, which
``target_modules`` selects; such adapters go on being served under the names that they were trained with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum


class Part(Enum):
    """What of an expert a linear layer is."""

    GATE = "gate"
    UP = "up"
    DOWN = "down"


# By model type: what the module of the experts was called within the block, and their layers.
_OLDER: Mapping[str, tuple[str, Mapping[Part, str]]] = {
    "mixtral": ("block_sparse_moe", {Part.GATE: "w1", Part.UP: "w3", Part.DOWN: "w2"}),
    "qwen3_moe": ("mlp", {Part.GATE: "gate_proj", Part.UP: "up_proj", Part.DOWN: "down_proj"}),
}


SERVED = frozenset(_OLDER)  # model types whose experts adapters may change


@dataclass(frozen=True, slots=True)
class ExpertStack:
    """A parameter [E, out, in] that holds a matrix of every expert of a layer."""

    name: str  # dotted path, e.g. "model.layers.0.mlp.experts.gate_up_proj"
    experts: int
    in_features: int
    out_features: int  # of gate and up: gate first

    @property
    def module(self) -> str:
        """The module whose parameter it is."""
        return self.name.rpartition(".")[0]

    @property
    def matrices(self) -> tuple[str, ...]:
        """The names that the experts' matrices have here."""
        return tuple(f"{self.name}.{i}" for i in range(self.experts))


@dataclass(frozen=True, slots=True)
class ExpertLinear:
    """A linear layer that an expert had in older versions, and where its weight is now."""

    name: str  # dotted path, e.g. "model.layers.0.block_sparse_moe.experts.3.w1"
    stack: ExpertStack
    expert: int
    part: Part

    @property
    def in_features(self) -> int:
        """Width of its input."""
        return self.stack.in_features

    @property
    def out_features(self) -> int:
        """Width of its output; gate and up are a half of the stack's each."""
        return self.stack.out_features if self.part is Part.DOWN else self.stack.out_features // 2


def older_layers(model_type: str, stacks: Iterable[ExpertStack]) -> dict[str, ExpertLinear]:
    """The linear layers that models of that type had in place of ``stacks``, by name."""
    if model_type not in _OLDER:
        return {}
    block, names = _OLDER[model_type]
    found = {}
    for stack in stacks:
        down = stack.name.endswith(".down_proj")
        parts = (Part.DOWN,) if down else (Part.GATE, Part.UP)
        module = stack.module.replace(".mlp.", f".{block}.")
        for expert in range(stack.experts):
            for part in parts:
                name = f"{module}.{expert}.{names[part]}"
                found[name] = ExpertLinear(name, stack, expert, part)
    return found
