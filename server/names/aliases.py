"""Aliases: a name for one model string, or for a weighted split of several."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from manylora.adapters.errors import AdapterNotFound, MixError
from manylora.adapters.mix import MAX_ENTRIES, MixTerm, check_weight, parse_target
from manylora.adapters.registry.records import AliasArm, AliasRecord

_HASHED = 2.0**64


def expand(
    terms: Sequence[MixTerm], aliases: Mapping[str, AliasRecord], base: str, user: str | None
) -> tuple[tuple[MixTerm, ...], AliasArm | None]:
    """The terms with every alias replaced by the arm that ``user`` gets of it.

    An arm that is a mix keeps its proportions: its weights are multiplied by the alias's own. If all that
    was asked for is one alias, its arm is returned as well.

    Raises:
        AdapterNotFound: a revision of an alias is asked for.
        MixError: more entries than a mix may have, or a weight out of bounds.
    """
    return _expand_all(terms, aliases, base, lambda alias: choose(alias, user))


def expand_sole(
    terms: Sequence[MixTerm], aliases: Mapping[str, AliasRecord], base: str
) -> tuple[MixTerm, ...]:
    """The terms with every alias replaced by its only target, for what is made of them once and for all.

    Raises:
        AdapterNotFound: a revision of an alias is asked for.
        MixError: an alias splits its requests; more entries than a mix may have, or a weight out of bounds.
    """
    return _expand_all(terms, aliases, base, lambda alias: _sole_target(alias, base))[0]


def _sole_target(alias: AliasRecord, base: str) -> str:
    if len(alias.arms) == 1:
        return alias.arms[0][0]
    targets = ", ".join(shown_target(target, base) for target, _ in alias.arms)
    raise MixError(
        f"the alias {alias.name!r} splits its requests between {targets}: name the one that is meant"
    )


def _expand_all(
    terms: Sequence[MixTerm],
    aliases: Mapping[str, AliasRecord],
    base: str,
    pick: Callable[[AliasRecord], str],
) -> tuple[tuple[MixTerm, ...], AliasArm | None]:
    if not any(term.name in aliases for term in terms):
        return tuple(terms), None
    expanded: list[MixTerm] = []
    arm: AliasArm | None = None
    for term in terms:
        alias = aliases.get(term.name)
        if alias is None:
            expanded.append(term)
            continue
        target = pick(alias)
        expanded += _expand(term, target, base)
        if len(terms) == 1 and term.weight == 1.0 and not term.merged:
            arm = AliasArm(alias.name, target)
    if len(expanded) > MAX_ENTRIES:
        raise MixError(
            f"with its aliases replaced the mix has {len(expanded)} of at most {MAX_ENTRIES} entries"
        )
    return tuple(expanded), arm


def _expand(term: MixTerm, target: str, base: str) -> list[MixTerm]:
    """The terms of ``target``, which ``term`` stands for."""
    if term.revision is not None:
        raise AdapterNotFound(f"{term.name!r} is an alias, and an alias has no revisions")
    where = f"{target!r} in alias {term.name!r}"
    return [
        replace(
            part, weight=check_weight(part.weight * term.weight, where), merged=part.merged or term.merged
        )
        for part in target_terms(target, base)
    ]


def choose(alias: AliasRecord, user: str | None) -> str:
    """The arm for ``user``: always the same while the arms stay the same; without a user, drawn afresh.

    With shares s₁, s₂, … of total S a user gets arm k if her hash, as a fraction of 2⁶⁴, falls into the
    k-th of the intervals of lengths sₖ / S that tile [0, 1). So moving share from one arm to its
    neighbour moves only the users in between.
    """
    fraction = random.random() if user is None else _fraction(alias.name, user)
    position = fraction * math.fsum(share for _, share in alias.arms)
    end = 0.0
    for target, share in alias.arms:
        end += share
        if position < end:
            return target
    return alias.arms[-1][0]  # rounding put the position at the very end


def _fraction(name: str, user: str) -> float:
    digest = hashlib.blake2b(f"{name}\0{user}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _HASHED


def target_terms(target: str, base: str) -> tuple[MixTerm, ...]:
    """The terms of an arm's model string; () for the base model, which aliases keep as "".

    Raises:
        MixError, AdapterNameError: it is malformed.
    """
    return () if target == base else parse_target(target)


def stored(arms: Sequence[tuple[str, float]], base: str) -> list[tuple[str, float]]:
    """Arms as the registry keeps them."""
    return [("" if target == base else target, share) for target, share in arms]


def shown(alias: AliasRecord, base: str) -> AliasRecord:
    """An alias with the base model under its name."""
    return replace(alias, arms=tuple((shown_target(target, base), share) for target, share in alias.arms))


def shown_target(target: str, base: str) -> str:
    """The model string of an alias's target, with the base model under its name."""
    return base if target == "" else target


def aliases_of(name: str, aliases: Mapping[str, AliasRecord], base: str) -> list[str]:
    """The aliases of which some arm names the adapter ``name``."""
    return [
        alias.name
        for alias in aliases.values()
        if any(term.name == name for target, _ in alias.arms for term in target_terms(target, base))
    ]
