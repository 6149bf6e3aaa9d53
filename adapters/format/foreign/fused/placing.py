"""From the modules of another architecture's names to those of the base: split, joined, in another order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.faults import Faults, shown, some
from manylora.adapters.format.foreign.change import LowRank
from manylora.adapters.format.foreign.fused.roles import Blocks, Fusion, Place, Role
from manylora.adapters.format.foreign.names import Rule

Pieces = dict[tuple[int, Role], tuple[LowRank, str]]  # with the path that each came from


def place_roles(
    found: Mapping[str, tuple[Place, LowRank]], base: BaseModel, faults: Faults
) -> tuple[dict[str, LowRank], set[Rule]]:
    """The change to each module of the base, from changes by path whose place in a block is known.

    What has no place is a fault.
    """
    blocks = Blocks(base)
    rules = {Rule.ROLE}
    pieces: Pieces = {}
    for path, (place, change) in found.items():
        fusion = blocks.settled(place)
        parts = _split(path, replace(place, fusion=fusion), change, blocks, faults)
        if len(fusion.roles) > 1:
            rules.add(Rule.SPLIT)
        for role, part in parts.items():
            key = (place.block, role)
            if key in pieces:
                faults.add(f"{shown(pieces[key][1])} and {shown(path)} both change {role} of block {key[0]}")
            pieces[key] = (part, path)
    modules: dict[str, LowRank] = {}
    for name, members in _by_module(pieces, blocks, base, faults).items():
        fusion = blocks.fusion_of(name) or Fusion(tuple(role for _, role in members))
        if len(fusion.roles) == 1:
            modules[name] = next(iter(members.values()))[0]
            continue
        rules.add(Rule.JOINED)
        joined = _joined(name, members, fusion, blocks, base=base, faults=faults)
        if joined is not None:
            modules[name] = joined
    return modules, rules


def _by_module(
    pieces: Pieces, blocks: Blocks, base: BaseModel, faults: Faults
) -> dict[str, dict[tuple[int, Role], tuple[LowRank, str]]]:
    modules: dict[str, dict[tuple[int, Role], tuple[LowRank, str]]] = {}
    homeless = []
    for key, piece in pieces.items():
        target = blocks.targets.get(key)
        if target is None:
            homeless.append(piece[1])
        else:
            modules.setdefault(target.module, {})[key] = piece
    if homeless:
        listed = some(sorted(set(homeless)), len(set(homeless)))
        faults.add(f"the base model ({base.architecture}) has no such projections: {listed}")
    return modules


def _split(path: str, place: Place, change: LowRank, blocks: Blocks, faults: Faults) -> dict[Role, LowRank]:
    """The change to each projection that the module holds."""
    roles = place.fusion.roles
    if len(roles) == 1:
        return {roles[0]: change}
    rows = blocks.rows(place.block, place.fusion)
    if isinstance(rows, str):
        faults.add(f"{shown(path)} can't be split: {rows}")
        return {}
    wanted, has = sum(map(len, rows)), change.b.shape[0]
    if has != wanted:
        held = ", ".join(f"{role} {len(part)}" for role, part in zip(roles, rows, strict=True))
        faults.add(f"{shown(path)} can't be split: its B has {has} rows, the base has {wanted} ({held})")
        return {}
    a = _a_of_each(change, len(roles))
    if a is None:
        faults.add(f"{shown(path)} can't be split: A has {change.rank} rows, B {change.b.shape[1]} columns")
        return {}
    return {
        role: LowRank(a[i], part.b, part.scaling, part.magnitude, part.b_bias)
        for i, role in enumerate(roles)
        for part in (change.rows(rows[i]),)
    }


def _a_of_each(change: LowRank, count: int) -> list[torch.Tensor] | None:
    """A for each of ``count`` projections: the same, or a share of its rows where they are so many more."""
    if change.rank == change.b.shape[1]:
        return [change.a] * count
    if change.rank == count * change.b.shape[1]:
        return list(change.a.chunk(count))
    return None


def _joined(
    name: str,
    members: Mapping[tuple[int, Role], tuple[LowRank, str]],
    fusion: Fusion,
    blocks: Blocks,
    *,
    base: BaseModel,
    faults: Faults,
) -> LowRank | None:
    """One change of a fused module that does to each of its projections what ``members`` do."""
    block = next(iter(members))[0]
    rows = blocks.rows(block, fusion)
    if isinstance(rows, str):
        faults.add(f"changes can't be joined for {shown(name)}: {rows}")
        return None
    parts = {role: members[block, role][0] for role in fusion.roles if (block, role) in members}
    place = dict(zip(fusion.roles, rows, strict=True))
    for role, part in parts.items():
        if part.b.shape[0] != len(place[role]) or part.a.shape[1] != base.modules[name].in_features:
            path = members[block, role][1]
            faults.add(f"{shown(path)} does not fit {shown(name)}: its shapes are those of another base")
            return None
    if len(parts) < len(fusion.roles) and any(part.magnitude is not None for part in parts.values()):
        faults.add(f"DoRA on a part of {shown(name)} alone: magnitudes of the other rows are missing")
        return None
    return _stacked(parts, place, base.modules[name].out_features)


def _stacked(parts: Mapping[Role, LowRank], place: Mapping[Role, torch.Tensor], out: int) -> LowRank:
    """A's one above the other, B's in a block of their own each; those that share A share its ranks."""
    scaling = next(iter(parts.values())).scaling
    shared: list[torch.Tensor] = []
    starts: list[int] = []
    for part in parts.values():
        known = next((i for i, a in enumerate(shared) if a is part.a or torch.equal(a, part.a)), None)
        if known is None:
            known = len(shared)
            shared.append(part.a)
        starts.append(known)
    first = [sum(a.shape[0] for a in shared[:i]) for i in range(len(shared))]
    rank = sum(a.shape[0] for a in shared)
    dtype = next(iter(parts.values())).b.dtype
    b = torch.zeros(out, rank, dtype=dtype)
    by_row: dict[str, torch.Tensor | None] = {"magnitude": None, "b_bias": None}
    for (role, part), known in zip(parts.items(), starts, strict=True):
        start = first[known]
        share = part.b if part.scaling == scaling else (part.b.float() * (part.scaling / scaling)).to(dtype)
        b[place[role], start : start + part.rank] = share.to(dtype)
        for key, values in part.by_row().items():
            if values is not None:
                whole = by_row[key]
                whole = torch.zeros(out, dtype=values.dtype) if whole is None else whole
                whole[place[role]] = values
                by_row[key] = whole
    return LowRank(torch.cat([a.to(shared[0].dtype) for a in shared]), b, scaling, **by_row)
