"""How tools spell the names of an adapter's tensors: one table of endings, one of prefixes.

A name is a path of a module and an ending that says which part of the module's change the tensor is. The
endings are recognized by :data:`ENDINGS`. Of the path nothing is guessed: wrappers are taken off its front,
and what is left must be what is left of exactly one module of the base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from manylora.adapters.format.base import BaseModel

PREFIX = "base_model.model."


class Part(StrEnum):
    """What a tensor is to its module. The values are the endings of PEFT's own names."""

    A = "lora_A.weight"
    B = "lora_B.weight"
    B_BIAS = "lora_B.bias"
    MAGNITUDE = "lora_magnitude_vector"
    EMBEDDING_A = "lora_embedding_A"
    EMBEDDING_B = "lora_embedding_B"
    ALPHA = "alpha"  # a number beside A and B, which PEFT has in its config
    OTHER = ""  # of a kind that only PEFT has


class Rule(StrEnum):
    """A rule by which a name or a tensor of another tool was read; the values are shown to users."""

    ADAPTER_NAME = "adapter name in tensor names"
    PREFIX = "prefixes of module names"
    WRAPPER = "wrappers in module names (_orig_mod, module, ...)"
    LOWER_CASE = "lora_a and lora_b"
    BARE = "lora_A and lora_B without .weight"
    DOWN_UP = "lora_down and lora_up"
    DIFFUSERS = "diffusers' lora.down and lora.up"
    MEGATRON = "Megatron's linear_in and linear_out"
    DORA_SCALE = "dora_scale as DoRA's magnitude"
    ALPHA = "alpha tensors"
    FLAT = "module names with underscores for dots"
    ROLE = "modules named by another architecture"
    SPLIT = "a fused projection split"
    JOINED = "projections joined to the base's fused one"
    SAVED = "modules_to_save in tensor names"
    TRANSPOSED = "A and B transposed"
    ROW_ORDER = "rows in another order"
    LLAMA_CPP = "llama.cpp's tensor names"
    MLX = "MLX-LM's tensor names"
    DEQUANTIZED = "dequantized to float32"


@dataclass(frozen=True, slots=True)
class Ending:
    """A way to spell a part; the name's path is what stands before the match."""

    pattern: re.Pattern[str]
    part: Part
    rule: Rule | None = None  # None: PEFT's own spelling


def _ending(expression: str, part: Part, rule: Rule | None = None) -> Ending:
    return Ending(re.compile(rf"(?:{expression})\Z"), part, rule)


_OF = r"\.(?!(?:weight|bias)\Z)[^.]+"  # an adapter's name: PyTorch allows no dot in it

ENDINGS: tuple[Ending, ...] = (
    _ending(r"\.lora_A\.weight", Part.A),
    _ending(r"\.lora_B\.weight", Part.B),
    _ending(r"\.lora_B\.bias", Part.B_BIAS),
    _ending(r"\.lora_magnitude_vector", Part.MAGNITUDE),
    _ending(r"\.lora_embedding_A", Part.EMBEDDING_A),
    _ending(r"\.lora_embedding_B", Part.EMBEDDING_B),
    _ending(r"\.lora_A\.[^.]+\.weight", Part.A, Rule.ADAPTER_NAME),
    _ending(r"\.lora_B\.[^.]+\.weight", Part.B, Rule.ADAPTER_NAME),
    _ending(r"\.lora_B\.[^.]+\.bias", Part.B_BIAS, Rule.ADAPTER_NAME),
    _ending(r"\.lora_magnitude_vector(\.[^.]+)?\.weight", Part.MAGNITUDE, Rule.ADAPTER_NAME),
    _ending(rf"\.lora_magnitude_vector{_OF}", Part.MAGNITUDE, Rule.ADAPTER_NAME),
    _ending(rf"\.lora_embedding_A{_OF}", Part.EMBEDDING_A, Rule.ADAPTER_NAME),
    _ending(rf"\.lora_embedding_B{_OF}", Part.EMBEDDING_B, Rule.ADAPTER_NAME),
    _ending(rf"\.lora_A({_OF})?", Part.A, Rule.BARE),
    _ending(rf"\.lora_B({_OF})?", Part.B, Rule.BARE),
    _ending(r"\.(lora_a|LORA_A|Lora_A)(\.[^.]+)?\.weight", Part.A, Rule.LOWER_CASE),
    _ending(r"\.(lora_b|LORA_B|Lora_B)(\.[^.]+)?\.weight", Part.B, Rule.LOWER_CASE),
    _ending(r"\.(lora_a|LORA_A|Lora_A)", Part.A, Rule.LOWER_CASE),
    _ending(r"\.(lora_b|LORA_B|Lora_B)", Part.B, Rule.LOWER_CASE),
    _ending(r"\.(lora_down|down_lora|lora_Down)(\.[^.]+)?\.weight", Part.A, Rule.DOWN_UP),
    _ending(r"\.(lora_up|up_lora|lora_Up)(\.[^.]+)?\.weight", Part.B, Rule.DOWN_UP),
    _ending(r"(\.lora_linear_layer|[._]lora)\.down\.weight", Part.A, Rule.DIFFUSERS),
    _ending(r"(\.lora_linear_layer|[._]lora)\.up\.weight", Part.B, Rule.DIFFUSERS),
    _ending(r"(\.adapter)?\.linear_in\.weight", Part.A, Rule.MEGATRON),
    _ending(r"(\.adapter)?\.linear_out\.weight", Part.B, Rule.MEGATRON),
    _ending(r"\.dora_scale", Part.MAGNITUDE, Rule.DORA_SCALE),
    _ending(r"(\.lora|\.lora_linear_layer|_lora)?\.alpha", Part.ALPHA, Rule.ALPHA),
)

# What PEFT calls the parameters of its kinds, at the front of a segment: an adapter's name may follow each.
_PARAMETERS = (
    "lora_", "ia3_", "vera_", "hada_", "lokr_", "oft_", "boft_", "hra_", "fourierft_", "vblora_", "randlora_",
    "shira_", "bone_", "miss_", "c3a_", "road_", "frod_", "supertuning_", "trainable_tokens_",
    "modules_to_save",
)  # fmt: skip

# Taken off the front of a path, in any number and order. What wraps a whole model, or a part of it.
_FRONT = frozenset(
    {
        "base_model", "model", "language_model", "text_model", "llm", "transformer", "gpt_neox", "backbone",
        "lora", "module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module",
    }
)  # fmt: skip
# Taken out anywhere: what PyTorch puts between a module and its parent.
_ANYWHERE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_WRAPPERS = frozenset({"module", "_orig_mod", "_forward_module"}) | _ANYWHERE
_MAX_SEGMENTS = 64  # of a name that is looked at
_FLAT = re.compile(r"(?:lora|lycoris)_(?:unet_|te[123]?_|transformer_)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Spelled:
    """A tensor's name, taken apart."""

    key: str  # as it is in the file
    path: str  # of the module, as it is in the file
    part: Part
    suffix: str  # what PEFT would have behind the module's name
    rule: Rule | None


@dataclass(frozen=True, slots=True)
class Split:
    """A tensor's name as that of a module of the base, and a rest."""

    path: str  # of the module, as it is in the file
    module: str  # as it is in the base
    rest: str  # without an adapter's name
    rules: frozenset[Rule]
    is_target: bool  # whether the rest is a parameter of an adapter, not a bias or a table


def take_apart(key: str, *, lora: bool = True) -> Spelled:
    """The path and the part of a tensor's name; of what is no LoRA, :data:`Part.OTHER` and the whole name.

    Without ``lora`` it is of another kind, whose tensors may have the same names with another meaning.
    """
    for ending in ENDINGS if lora else ():
        found = ending.pattern.search(key)
        if found is not None and found.start():
            return Spelled(key, key[: found.start()], ending.part, str(ending.part), ending.rule)
    return Spelled(key, key, Part.OTHER, "", None)


def core(path: str) -> str:
    """A path without the wrappers at its front and those that PyTorch puts between modules."""
    segments = [segment for segment in path.split(".") if segment not in _ANYWHERE]
    first = next((i for i, segment in enumerate(segments) if segment not in _FRONT), len(segments))
    return ".".join(segments[first:])


class Places:
    """Finds the module of a base that a path of another tool means."""

    def __init__(self, base: BaseModel) -> None:
        self._names = frozenset(base.modules) | frozenset(base.norms) | base.others
        self._cores = _unique((core(name), name) for name in self._names)
        self._flat = _unique(
            (form.replace(".", "_"), name) for name in base.modules for form in {name, core(name)}
        )

    def find(self, path: str) -> tuple[str, frozenset[Rule]] | None:
        """The module's name in the base, and the rules that it took; None where there is no such module."""
        own = path.removeprefix(PREFIX)
        if own in self._names and path.startswith(PREFIX):
            return own, frozenset()
        name = self._cores.get(core(path)) if core(path) else None
        if name is not None:
            return name, _rules_of_prefix(path)
        flat = _FLAT.match(path)
        if flat is not None and "." not in path:
            name = self._flat.get(path[flat.end() :])
        return None if name is None else (name, frozenset({Rule.FLAT}))

    def split(self, key: str) -> Split | None:
        """A name whose ending is not known, by the longest path that is a module's."""
        segments = key.split(".")
        if len(segments) > _MAX_SEGMENTS:
            return None
        for count in range(len(segments) - 1, 0, -1):
            found = self.find(".".join(segments[:count]))
            if found is not None and segments[count:]:
                rest, rules = _without_adapter_name(segments[count:])
                own = rest.startswith(_PARAMETERS)
                return Split(".".join(segments[:count]), found[0], rest, found[1] | rules, own)
        return None


def _without_adapter_name(segments: list[str]) -> tuple[str, frozenset[Rule]]:
    """``ia3_l.default`` as ``ia3_l``, ``modules_to_save.default.weight`` as ``weight``."""
    for index, segment in enumerate(segments):
        if not segment.startswith(_PARAMETERS) or index + 1 == len(segments):
            continue
        follows = segments[index + 1]
        if segment == "modules_to_save" and len(segments) > index + 2:
            return ".".join(segments[index + 2 :]), frozenset({Rule.SAVED})
        if follows not in ("weight", "bias") and segment != "modules_to_save":
            rest = [*segments[: index + 1], *segments[index + 2 :]]
            return ".".join(rest), frozenset({Rule.ADAPTER_NAME})
    return ".".join(segments), frozenset()


def _rules_of_prefix(path: str) -> frozenset[Rule]:
    if _WRAPPERS.intersection(path.split(".")):
        return frozenset({Rule.WRAPPER})
    return frozenset({Rule.PREFIX})


def _unique(pairs: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    """The pairs whose first occurs with one second only."""
    found: dict[str, set[str]] = {}
    for key, value in pairs:
        found.setdefault(key, set()).add(value)
    return {key: next(iter(values)) for key, values in found.items() if len(values) == 1}
