"""Which modules of a base model a config means, and what it says about each one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from manylora.adapters.format.base import BaseModel, TargetModule
from manylora.adapters.format.config.config import AdapterConfig
from manylora.adapters.format.config.patterns import Deadline, PatternFault, assign, block_indices, select
from manylora.adapters.format.config.reader import Number, Selector
from manylora.adapters.format.experts import ExpertLinear
from manylora.adapters.format.faults import Faults, shown, some

ALL_LINEAR = "all-linear"
_EMBEDDINGS = ("embed_tokens", "lm_head")  # peft.utils.constants.EMBEDDING_LAYER_NAMES


@dataclass(frozen=True, slots=True)
class Target:
    """What the config says about one target module."""

    rank: int  # 0 of kinds without A and B, and of further ones, whose settings say it
    scaling: float  # alpha / rank, or alpha / √rank under rsLoRA; 1 for the other kinds
    feedforward: bool = False  # of IA3: its input is scaled instead of its output


def select_targets(config: AdapterConfig, base: BaseModel, faults: Faults) -> dict[str, Target] | None:
    """The modules of ``base`` that the config selects, in forward order.

    None (and a fault) if that can't be said: a bad pattern, or a module that can't be adapted.
    """
    deadline = Deadline()
    before = len(faults)
    chosen = _selected(config, base, deadline, faults)
    by_weight = _weights(config, base, chosen, deadline, faults)
    names = [name for name in _everywhere(config, base) if name in chosen | by_weight]
    feedforward = _feedforward(config, names, deadline, faults)
    weights = by_weight - base.experts.keys()
    keys = {f"{name}.weight" if name in weights else name: name for name in names}  # what patterns see
    ranks = by_pattern("rank_pattern", config.rank_pattern, [*keys], deadline, faults)
    alphas = by_pattern("alpha_pattern", config.alpha_pattern, [*keys], deadline, faults)
    if config.kind == "TRAINABLE_TOKENS" and not config.target_modules:  # PEFT: the embeddings
        return {}
    if len(faults) == before and not names and not chosen & table_names(config, base):
        said = _said(config.target_modules)
        faults.add(f"target modules {said} are not found in the base model ({base.architecture})")
    if len(faults) != before:
        return None
    if config.settings is not None or config.kind in ("LN_TUNING", "TRAINABLE_TOKENS"):
        return dict.fromkeys(names, Target(0, 1.0))
    if config.kind == "IA3":
        return {name: Target(0, 1.0, name in feedforward) for name in names}
    if config.kind == "VERA":
        return dict.fromkeys(names, Target(config.r, 1.0))
    return {name: _lora(config, ranks.get(key), alphas.get(key)) for key, name in keys.items()}


def table_names(config: AdapterConfig, base: BaseModel) -> frozenset[str]:
    """The input embeddings and the output head, of the kinds that may target them."""
    if base.vocabulary is None or config.kind not in ("LORA", "TRAINABLE_TOKENS"):
        return frozenset()
    return frozenset({base.vocabulary.embedding, base.vocabulary.head})


def table_targets(config: AdapterConfig, base: BaseModel) -> dict[str, Target]:
    """Which of the embeddings and the output head LoRA is put on, and what the config says about them.

    What :func:`select_targets` reports is not reported again.
    """
    if config.kind != "LORA":
        return {}
    unreported = Faults()
    deadline = Deadline()
    names = sorted(_selected(config, base, deadline, unreported) & table_names(config, base))
    ranks = by_pattern("rank_pattern", config.rank_pattern, names, deadline, unreported)
    alphas = by_pattern("alpha_pattern", config.alpha_pattern, names, deadline, unreported)
    return {name: _lora(config, ranks.get(name), alphas.get(name)) for name in names}


def token_tables(config: AdapterConfig, base: BaseModel) -> list[str]:
    """The tables whose rows an adapter of kind TRAINABLE_TOKENS replaces; faults are reported as above."""
    assert base.vocabulary is not None
    if not config.target_modules:
        return [base.vocabulary.embedding]
    return sorted(_selected(config, base, Deadline(), Faults()) & table_names(config, base))


def names_meaning(chosen: Iterable[str], everything: Iterable[str]) -> list[str]:
    """``target_modules`` for ``chosen``: last components where they mean exactly those, else full names."""
    wanted = set(chosen)
    short = {name.rpartition(".")[2] for name in wanted}
    meant = {name for name in everything if name.rpartition(".")[2] in short}
    return sorted(short if meant == wanted else wanted)


def saved_modules(config: AdapterConfig, base: BaseModel) -> frozenset[str]:
    """The modules replaced as a whole (``modules_to_save``). PEFT compares mere endings of names."""
    endings = tuple(config.modules_to_save)
    return frozenset(name for name in (*base.modules, *base.others) if name.endswith(endings))


def saves_embeddings(config: AdapterConfig) -> bool:
    """Whether PEFT sees ``modules_to_save`` name embeddings or head, which it knows by two names only."""
    return any(name.rpartition(".")[2] in _EMBEDDINGS for name in config.modules_to_save)


def targets_embeddings(config: AdapterConfig) -> bool:
    """Whether ``target_modules`` selects embeddings or head, which PEFT knows by two names only."""
    if not isinstance(config.target_modules, str):
        return any(name.rpartition(".")[2] in _EMBEDDINGS for name in config.target_modules)
    try:
        return bool(select(config.target_modules, list(_EMBEDDINGS), Deadline()))
    except PatternFault:  # reported where the targets are selected
        return False


def _lora(config: AdapterConfig, own_rank: int | None, own_alpha: float | None) -> Target:
    rank = config.r if own_rank is None else own_rank
    alpha = config.alpha if own_alpha is None else own_alpha
    return Target(rank, alpha / math.sqrt(rank) if config.use_rslora else alpha / rank)


def _selected(config: AdapterConfig, base: BaseModel, deadline: Deadline, faults: Faults) -> frozenset[str]:
    """The modules of the base that the config selects, by PEFT's rules."""
    everything = [*base.modules, *base.others, *_expert_layers(config, base)]
    try:
        targets = _targets(config, base, everything, deadline)
        excluded = _matching(config.exclude_modules, everything, deadline)
    except PatternFault as fault:
        faults.add(f"target_modules, exclude_modules or layers_pattern: {fault}")
        return frozenset()
    chosen = targets - excluded
    unserved = sorted(chosen - frozenset(_everywhere(config, base)) - table_names(config, base))
    if unserved:
        served = _SERVED_TARGETS.get(config.kind, _SERVED_LINEAR)
        faults.add(f"target_modules selects {some(unserved, len(unserved))}: {served}")
    return chosen


def _weights(
    config: AdapterConfig, base: BaseModel, chosen: frozenset[str], deadline: Deadline, faults: Faults
) -> frozenset[str]:
    """The linear layers and stacks of experts whose weights ``target_parameters`` names.

    As in PEFT those whose names end so.
    """
    everything = [*base.modules, *base.others]
    stacks = "of the experts and " if base.experts else ""
    others = "routers" if base.experts else "the parameters of experts"
    found: set[str] = set()
    for parameter in config.target_parameters:
        deadline.check()
        ending = f".{parameter}"
        names = {name for name in everything if f".{name}.weight".endswith(ending)}
        experts = {name for name in base.experts if f".{name}".endswith(ending)}
        if not names | experts or not names <= base.modules.keys():
            faults.add(
                f"target_parameters names {shown(parameter)}: only the weights {stacks}of linear layers in "
                f"the decoder blocks are served, not {others}, embeddings, head or norms"
            )
        if any(base.modules[name].transposed for name in names & base.modules.keys()):
            faults.add(
                f"target_parameters names {shown(parameter)}, the weight of a Conv1D: target the layer"
            )
        found |= names | experts
    own = {base.expert_layers[name].stack.name for name in chosen & base.expert_layers.keys()}
    both = sorted(found & (chosen | own))
    if both:
        faults.add(f"target_modules and target_parameters both select {some(both, len(both))}")
    return frozenset(found)


_SERVED_LINEAR = (
    "only linear layers inside the decoder blocks are served, and by LoRA the input embeddings and the "
    "output head"
)
_SERVED_TARGETS = {
    "LN_TUNING": "of this kind only norms that scale what they normalize are served",
    "TRAINABLE_TOKENS": "of this kind only the input embeddings and the output head are served",
}


def _everywhere(config: AdapterConfig, base: BaseModel) -> list[str]:
    """What an adapter of this kind may change, embeddings and head aside: experts under either name, last."""
    return [*_adaptable(config, base), *base.experts, *_expert_layers(config, base)]


def _expert_layers(config: AdapterConfig, base: BaseModel) -> Mapping[str, ExpertLinear]:
    """The linear layers that experts were, which plain LoRA alone may select."""
    plain = config.kind == "LORA" and not (config.use_dora or config.lora_bias or config.activation)
    return base.expert_layers if plain else {}


def _adaptable(config: AdapterConfig, base: BaseModel) -> Mapping[str, TargetModule]:
    """The modules that an adapter of this kind may target, embeddings and head aside, in forward order."""
    if config.kind == "TRAINABLE_TOKENS":
        return {}
    return base.norms if config.kind == "LN_TUNING" else base.modules


def _targets(
    config: AdapterConfig, base: BaseModel, everything: list[str], deadline: Deadline
) -> frozenset[str]:
    if isinstance(config.target_modules, str):
        if config.target_modules.lower() == ALL_LINEAR:
            return frozenset(base.modules)
        return select(config.target_modules, everything, deadline)
    found = _matching(config.target_modules, everything, deadline)
    if not config.layers_to_transform:
        return found
    blocks = block_indices(sorted(found), config.layers_patterns, deadline)
    return frozenset(
        name
        for name in found
        if name in config.target_modules  # PEFT's rule: a full name is taken whatever its block
        or blocks.get(name) in config.layers_to_transform
    )


def _matching(selector: Selector, names: list[str], deadline: Deadline) -> frozenset[str]:
    if isinstance(selector, str):
        return select(selector, names, deadline) if selector else frozenset()
    suffixes = tuple(f".{suffix}" for suffix in selector)
    found = set()
    for name in names:
        deadline.check()
        if name in selector or name.endswith(suffixes):
            found.add(name)
    return frozenset(found)


def _feedforward(
    config: AdapterConfig, names: list[str], deadline: Deadline, faults: Faults
) -> frozenset[str]:
    """The modules of ``names`` whose input IA3 scales. PEFT compares mere endings: "proj" fits "up_proj"."""
    wanted = config.feedforward_modules
    try:
        return (
            select(wanted, names, deadline) if isinstance(wanted, str) else _ending(wanted, names, deadline)
        )
    except PatternFault as fault:
        faults.add(f"feedforward_modules: {fault}")
        return frozenset()


def _ending(endings: Iterable[str], names: list[str], deadline: Deadline) -> frozenset[str]:
    listed = tuple(endings)
    found = set()
    for name in names:
        deadline.check()
        if name.endswith(listed):
            found.add(name)
    return frozenset(found)


def by_pattern(
    key: str, patterns: Mapping[str, Number], names: list[str], deadline: Deadline, faults: Faults
) -> dict[str, Number]:
    """What ``patterns``, the value of ``key``, say about those of ``names`` that one fits."""
    try:
        return {name: patterns[fit] for name, fit in assign(patterns, names, deadline).items()}
    except PatternFault as fault:
        faults.add(f"{key}: {fault}")
        return {}


def _said(selector: Selector) -> str:
    return shown(selector) if isinstance(selector, str) else some(sorted(selector), len(selector))
