"""What is to be composed: members with weights, a method and its settings; every fault told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.mix import MixEntry, normalize

Method = Literal["linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
SignMethod = Literal["total", "frequency"]

METHODS: tuple[str, ...] = get_args(Method)
SIGN_METHODS: tuple[str, ...] = get_args(SignMethod)
SPARSE = ("ties", "dare_linear", "dare_ties", "magnitude_prune")  # those that thin the members out
SIGNED = ("ties", "dare_ties")  # those that elect a sign for each weight
RANDOM = ("dare_linear", "dare_ties")


@dataclass(frozen=True)
class Member:
    """One adapter of a composition."""

    name: str  # as the user calls it
    artifact: Artifact
    weight: float


@dataclass(frozen=True)
class Recipe:
    """How members become one. Settings that the method does not have are None."""

    method: Method = "linear"
    rank: int | None = None  # of the result: every method but linear
    density: float | None = None  # share of each member's weights that is kept: the sparse methods
    seed: int | None = None  # of what DARE drops
    sign_method: SignMethod | None = None  # ties, dare_ties: "total" weighs, "frequency" counts


class RecipeError(ArtifactError):
    """Settings are missing, out of range, or of another method."""

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        """``faults``: the setting each is about, and what is wrong."""
        super().__init__([fault for _, fault in faults])
        self.settings = tuple(setting for setting, _ in faults)


def recipe_of(
    method: str,
    *,
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
    sign_method: str | None = None,
) -> Recipe:
    """A checked recipe from what a user gave: density 0.5, seed 0 and sign_method "total" where needed.

    Raises:
        RecipeError: as :func:`check_recipe`.
    """
    recipe = Recipe(
        method=method,  # type: ignore[arg-type]  # checked below, like the sign method
        rank=rank,
        density=0.5 if density is None and method in SPARSE else density,
        seed=0 if seed is None and method in RANDOM else seed,
        sign_method="total" if sign_method is None and method in SIGNED else sign_method,  # type: ignore[arg-type]
    )
    check_recipe(recipe)
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe with settings that are missing, out of range, or of another method.

    Raises:
        RecipeError: with every fault.
    """
    method = recipe.method
    if method not in METHODS:
        raise RecipeError([("method", f"method {method!r} is none of {', '.join(METHODS)}")])
    faults = [
        *_misplaced("rank", recipe.rank, method != "linear", method),
        *_misplaced("density", recipe.density, method in SPARSE, method),
        *_misplaced("seed", recipe.seed, method in RANDOM, method),
        *_misplaced("sign_method", recipe.sign_method, method in SIGNED, method),
    ]
    if recipe.rank is not None and recipe.rank < 1:
        faults.append(("rank", f"rank {recipe.rank} is not a positive number"))
    if recipe.density is not None and not 0 < recipe.density <= 1:
        faults.append(("density", f"density {recipe.density} is not above 0 and up to 1"))
    if recipe.sign_method not in (None, *SIGN_METHODS):
        known = ", ".join(SIGN_METHODS)
        faults.append(("sign_method", f"sign_method {recipe.sign_method!r} is none of {known}"))
    if faults:
        raise RecipeError(faults)


def _misplaced(setting: str, value: object, needed: bool, method: str) -> list[tuple[str, str]]:
    """The fault that a setting is missing, or that the method has none of that name."""
    if needed and value is None:
        return [(setting, f"{method} needs {setting}")]
    return [(setting, f"{method} has no {setting}")] if not needed and value is not None else []


def check_members(members: Sequence[Member], recipe: Recipe) -> tuple[Member, ...]:
    """The members with equal ones added up, sorted by digest, if ``recipe`` can express them.

    Raises:
        ArtifactError: naming each member that can't be a part, and why.
    """
    faults = Faults()
    by_digest = {member.artifact.digest: member for member in members}
    total = normalize(MixEntry(m.artifact.digest, m.weight) for m in members)
    if not total:
        faults.add("nothing is left: no members, or their weights add up to 0")
    for member in by_digest.values():
        reason = _inexpressible(member.artifact, recipe)
        if reason is not None:
            faults.add(f"{member.name} can't be composed: {reason}")
    with_experts = [m.name for m in by_digest.values() if m.artifact.experts]
    with_bias = [m.name for m in by_digest.values() if _has_bias_on_b(m.artifact)]
    if with_experts and with_bias:
        faults.add(
            f"{with_experts[0]} changes experts and {with_bias[0]} has biases on B (lora_bias), which PEFT "
            "puts on every part of an adapter and can't on experts; a mix of both can be served"
        )
    faults.raise_any()
    found = [by_digest[entry.digest] for entry in total]
    return tuple(Member(m.name, m.artifact, e.weight) for m, e in zip(found, total, strict=True))


def _inexpressible(artifact: Artifact, recipe: Recipe) -> str | None:
    """Why no LoRA adapter computes what this one does."""
    for part, reason in (
        (artifact.activation, "it acts only from certain tokens on (aLoRA)"),
        (artifact.prompt, "it puts virtual tokens before every text, which no weight can"),
        (artifact.classes, "it classifies, and the heads of two adapters have no sum"),
        (artifact.pooling, "it embeds and says how, which a LoRA that writes does not; a mix can be served"),
        (artifact.vocabulary, "it changes the embeddings or the output head; a mix with it can be served"),
    ):
        if part is not None:
            return reason
    deltas = artifact.delta.values()
    for has, reason in _REASONS:
        if any(has(delta) for delta in deltas):
            return f"{reason}; a mix of both can be served, and merged into the base (manylora merge)"
    if recipe.method in SPARSE and _has_bias_on_b(artifact):
        return f"{recipe.method} says nothing about a bias on B (lora_bias); linear and svd add it up"
    return None


def _has_bias_on_b(artifact: Artifact) -> bool:
    return any(delta.b_bias is not None for delta in artifact.delta.values())


def _replaces_norms(delta: ModuleDelta) -> bool:
    return delta.scale is not None


def _has_magnitude(delta: ModuleDelta) -> bool:
    return delta.magnitude is not None


def _has_bias(delta: ModuleDelta) -> bool:
    return delta.bias is not None


def _has_scale(delta: ModuleDelta) -> bool:
    return delta.output_scale is not None or delta.input_scale is not None


def _needs_weight(delta: ModuleDelta) -> bool:
    return delta.needs_weight


_REASONS = (
    (_replaces_norms, "it replaces weights of norms (LN tuning), which LoRA does not change"),
    (_needs_weight, "what it changes depends on the base's weights"),
    (_has_magnitude, "DoRA scales the base's own weights, which is no change of low rank"),
    (_has_bias, "its biases take the place of the base's (bias=), which the sum of two can't"),
    (_has_scale, "IA3 scales the base's own outputs, which is no change of low rank"),
)
