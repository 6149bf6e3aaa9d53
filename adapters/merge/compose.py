"""Several adapters composed into one that plain PEFT loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.faults import Faults, some
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.merge.lowrank import NO_ENERGY, Energy, Factors, approximate, concatenate, truncate
from manylora.adapters.merge.recipe import SPARSE, Member, Recipe, check_members, check_recipe
from manylora.adapters.merge.sparse import merge_sparse
from manylora.adapters.merge.texts import text_files, text_of
from manylora.adapters.merge.writing import write_adapter

Progress = Callable[[int, int], None]  # modules done, modules in all


@dataclass(frozen=True)
class ComposedModule:
    """What a composed adapter has for one module."""

    factors: Factors
    b_bias: torch.Tensor | None  # [out] float32, added to the output
    energy: Energy  # of the change, and what the rank left out of it


@dataclass(frozen=True)
class Composition:
    """The result of composing, not yet written."""

    modules: Mapping[str, ComposedModule]  # in the base's forward order, then matrices of experts
    members: tuple[Member, ...]
    recipe: Recipe
    base: BaseModel
    texts: Mapping[str, bytes]  # tokenizer and template files, where a member has its own

    @property
    def energy(self) -> Energy:
        """The energy of the exact change and of what the rank left out of it, over all modules."""
        return sum((module.energy for module in self.modules.values()), NO_ENERGY)

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(module.factors.rank for module in self.modules.values())

    @property
    def lineage(self) -> dict[str, Any]:
        """What the composition was made from and how, JSON-safe."""
        settings = {key: value for key, value in vars(self.recipe).items() if value is not None}
        members = [{"name": m.name, "digest": m.artifact.digest, "weight": m.weight} for m in self.members]
        return {
            **settings,
            "members": members,
            "base": self.base.name,
            "energy_lost": self.energy.share_lost,
        }


def compose(
    members: Sequence[Member], recipe: Recipe, base: BaseModel, progress: Progress | None = None
) -> Composition:
    """Compose ``members``, module by module, in memory.

    Raises:
        ArtifactError: the recipe is not valid or a member can't be a part, with every fault; or nothing
            is left of the sum.
    """
    check_recipe(recipe)
    used = check_members(members, recipe)
    faults = Faults()
    text = text_of(used, faults)
    faults.raise_any()
    texts = text_files(text, base.text)
    everything = [*base.modules, *(name for stack in base.experts.values() for name in stack.matrices)]
    names = [name for name in everything if any(name in m.artifact.delta for m in used)]
    modules = {}
    for done, name in enumerate(names, 1):
        parts = [
            (m.artifact.digest, m.artifact.delta[name], m.weight) for m in used if name in m.artifact.delta
        ]
        modules[name] = _compose_module(name, parts, recipe)
        if progress is not None:
            progress(done, len(names))
    _check_result(modules)
    return Composition(modules, used, recipe, base, texts)


def save(composition: Composition, out: Path) -> None:
    """Write the composition as a PEFT directory at ``out``, which must not exist.

    It is there as a whole or not at all, whenever the process ends.

    Raises:
        StoreError: there is something at ``out`` already, or the disk refused.
    """
    factors = {name: module.factors for name, module in composition.modules.items()}
    biases = {n: m.b_bias for n, m in composition.modules.items() if m.b_bias is not None}
    write_adapter(
        out,
        factors,
        b_biases=biases,
        base=composition.base,
        lineage=composition.lineage,
        texts=composition.texts,
    )


def _compose_module(
    name: str, parts: Sequence[tuple[str, ModuleDelta, float]], recipe: Recipe
) -> ComposedModule:
    weighted = [(delta, weight) for _, delta, weight in parts]
    if recipe.method in SPARSE:
        assert recipe.rank is not None
        changes = [(digest, _dense(delta), weight) for digest, delta, weight in parts]
        factors, energy = approximate(merge_sparse(changes, name, recipe), recipe.rank)
        return ComposedModule(factors, None, energy)
    factors, energy = concatenate(weighted), NO_ENERGY
    if recipe.method == "svd":
        assert recipe.rank is not None
        factors, energy = truncate(factors, recipe.rank)
    return ComposedModule(factors, _sum_biases(weighted), energy)


def _dense(delta: ModuleDelta) -> torch.Tensor:
    """The change of a weight that an adapter makes, ``s B A`` [out, in] in float32."""
    a, b = delta.factors()
    return b @ a.float()


def _sum_biases(parts: Sequence[tuple[ModuleDelta, float]]) -> torch.Tensor | None:
    found = [d.b_bias.float() * (w * d.scaling) for d, w in parts if d.b_bias is not None]
    return torch.stack(found).sum(0) if found else None


def _check_result(modules: Mapping[str, ComposedModule]) -> None:
    """An adapter that changes nothing, or by values that are no numbers, is not written."""
    tensors = {n: (m.factors.a, m.factors.b) for n, m in modules.items()}
    broken = [n for n, (a, b) in tensors.items() if not (a.isfinite().all() and b.isfinite().all())]
    if broken:
        raise ArtifactError([f"the sum overflows in {some(broken, len(broken))}: use smaller weights"])
    biased = any(m.b_bias is not None and bool(m.b_bias.any()) for m in modules.values())
    if not biased and not any(bool(a.any()) and bool(b.any()) for a, b in tensors.values()):
        raise ArtifactError(["the composition changes nothing: the members cancel out"])
