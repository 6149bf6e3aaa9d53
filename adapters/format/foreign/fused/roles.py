"""Which projection of a decoder block a module is, whatever its architecture calls it, and how it is fused.

Only names whose rows mean the same everywhere are listed. Formats that order the rows of q and k for another
rotary embedding (Meta's wq and wk, torchtune's attn.q_proj) are not: they look alike and are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from manylora.adapters.format.base import AttentionHeads, BaseModel
from manylora.adapters.format.foreign.names import core


class Role(StrEnum):
    """A projection of a decoder block."""

    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741  (what the output projection is called everywhere)
    GATE = "gate"
    UP = "up"
    DOWN = "down"


class Rows(StrEnum):
    """How the rows of a fused projection are laid out."""

    ONE_AFTER_ANOTHER = "q, k, v one after another"
    BY_GROUP = "by group: its queries, its key, its value"
    EITHER = "either"  # the name is used for both


@dataclass(frozen=True, slots=True)
class Fusion:
    """What a module holds: one projection, or several in the order of their rows."""

    roles: tuple[Role, ...]
    rows: Rows = Rows.ONE_AFTER_ANOTHER


QKV = (Role.Q, Role.K, Role.V)
GATE_UP = (Role.GATE, Role.UP)


def _one(role: Role, *endings: str) -> dict[str, Fusion]:
    return dict.fromkeys(endings, Fusion((role,)))


_ATTENTION = r"self_attn|self_attention|attention|attn|attn1"
# The last segments of a module's path, longest first where one ends another.
_ENDINGS: Mapping[str, Fusion] = {
    **_one(Role.Q, "q_proj", "to_q", "linear_q", "linear_qkv.adapter.adapter_q", "linear_qkv.adapter_q"),
    **_one(Role.K, "k_proj", "to_k", "linear_k", "linear_qkv.adapter.adapter_k", "linear_qkv.adapter_k"),
    **_one(Role.V, "v_proj", "to_v", "linear_v", "linear_qkv.adapter.adapter_v", "linear_qkv.adapter_v"),
    **_one(Role.O, "o_proj", "out_proj", "to_out.0", "to_out", "linear_proj", "dense", "c_proj"),
    **dict.fromkeys(("qkv_proj", "to_qkv", "qkv", "Wqkv", "W_pack", "c_attn"), Fusion(QKV)),
    "linear_qkv": Fusion(QKV, Rows.BY_GROUP),
    "adapter_layer.lora_kqv_adapter": Fusion(QKV, Rows.BY_GROUP),
    **_one(Role.O, "adapter_layer.lora_dense_attention_adapter"),
    "query_key_value": Fusion(QKV, Rows.EITHER),
}
_MLP_ENDINGS: Mapping[str, Fusion] = {
    **_one(Role.GATE, "gate_proj", "linear_fc1.adapter.adapter_gate", "linear_fc1.adapter_gate"),
    **_one(Role.UP, "up_proj", "c_fc", "dense_h_to_4h", "linear_fc1.adapter.adapter_up", "fc1"),
    **_one(Role.UP, "linear_fc1.adapter_up"),
    **_one(Role.DOWN, "down_proj", "c_proj", "dense_4h_to_h", "linear_fc2", "fc2"),
    "gate_up_proj": Fusion(GATE_UP),
    "adapter_layer.lora_hto4h_adapter": Fusion(GATE_UP),
    **_one(Role.DOWN, "adapter_layer.lora_4htoh_adapter"),
    "linear_fc1": Fusion(GATE_UP),  # of an MLP without a gate it is the up projection: the base says which
}
_BLOCK = re.compile(
    rf"((?:[^.]+\.)*?)(?:layers|h|blocks)\.(\d{{1,5}})\.(?:({_ATTENTION})|mlp)\.(.+)", re.DOTALL
)
# Written by Megatron, NeMo, and what is like diffusers, for models of any architecture.
_OF_TOOLS = frozenset(
    name
    for name in (*_ENDINGS, *_MLP_ENDINGS)
    if name.startswith(("linear_", "adapter_layer.", "to_")) or name == "query_key_value"
)
# Of models that others have fused, or taken apart, under otherwise equal names.
_OF_MODELS = frozenset(
    {
        "q_proj",
        "k_proj",
        "v_proj",
        "qkv_proj",
        "qkv",
        "Wqkv",
        "W_pack",
        "gate_proj",
        "up_proj",
        "gate_up_proj",
    }
)
_STACKS = ("", "decoder")  # what may stand before the blocks of a language model, but for wrappers


@dataclass(frozen=True, slots=True)
class Place:
    """A module of a decoder block by its block and by what it holds."""

    block: int
    fusion: Fusion
    ending: str  # of its path, behind the attention's or the MLP's
    container: str  # what stands before that, without wrappers: "layers.0.self_attn"


def place_of(path: str) -> Place | None:
    """The block and the projections of a module with this path; None where its name is not known."""
    found = _BLOCK.fullmatch(path)
    if found is None or core(found[1].removesuffix(".")) not in _STACKS:  # a vision tower has blocks, too
        return None
    fusion = (_ENDINGS if found[3] else _MLP_ENDINGS).get(found[4])
    container = core(path[: found.start(4)].removesuffix("."))
    return None if fusion is None else Place(int(found[2]), fusion, found[4], container)


@dataclass(frozen=True, slots=True)
class Target:
    """A module of the base that holds a projection, alone or fused."""

    module: str
    fusion: Fusion
    ending: str  # of its name, behind the attention's or the MLP's


class Blocks:
    """The projections of a base's decoder blocks."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self.targets: dict[tuple[int, Role], Target] = {}
        for name in base.modules:
            place = place_of(name)
            if place is None:
                continue
            fusion = place.fusion
            if fusion.rows is Rows.EITHER:  # of transformers' own models with that name: NeoX, Falcon, Bloom
                fusion = Fusion(fusion.roles, Rows.BY_GROUP)
            for role in fusion.roles:
                self.targets.setdefault((place.block, role), Target(name, fusion, place.ending))

    def means(self, place: Place) -> bool:
        """Whether a path of another tool may stand for projections of this base.

        Names that only one kind of tool uses may, and those of transformers' own models where all but the
        last name is the base's: an adapter for another architecture stays one, even if its shapes fit.
        """
        if place.ending in _OF_TOOLS:
            return True
        found = (self.targets.get((place.block, role)) for role in place.fusion.roles)
        targets = [target for target in found if target is not None and target.ending in _OF_MODELS]
        containers = {core(target.module).removesuffix(f".{target.ending}") for target in targets}
        return place.ending in _OF_MODELS and place.container in containers

    def fusion_of(self, module: str) -> Fusion | None:
        """What a module of the base holds."""
        return next((t.fusion for t in self.targets.values() if t.module == module), None)

    def settled(self, place: Place) -> Fusion:
        """What a module of another tool holds, where its name alone does not say it."""
        if place.fusion.roles == GATE_UP and (place.block, Role.GATE) not in self.targets:
            return Fusion((Role.UP,))
        return place.fusion

    def rows(self, block: int, fusion: Fusion) -> list[torch.Tensor] | str:
        """For each projection of ``fusion`` its rows in the fused module, or why they can't be told."""
        if fusion.roles == QKV:
            heads = self._heads(block)
            return qkv_rows(self._qkv_sizes(block, heads), fusion.rows, heads)
        sizes = [self._size(block, role, None) for role in fusion.roles]
        if None in sizes:
            return "the base has no such projections"
        return _after_another([size for size in sizes if size is not None])

    def _heads(self, block: int) -> AttentionHeads | None:
        """The heads of a block, whose projections tell how many keys there are."""
        target, heads = self.targets.get((block, Role.Q)), self._base.heads
        if target is None or heads is None or target.fusion.roles != QKV:
            return heads
        return heads.of_fused(self._base.modules[target.module].out_features)

    def _qkv_sizes(self, block: int, heads: AttentionHeads | None) -> tuple[int, int, int] | None:
        sizes = [size for role in QKV if (size := self._size(block, role, heads)) is not None]
        return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else None

    def _size(self, block: int, role: Role, heads: AttentionHeads | None) -> int | None:
        target = self.targets.get((block, role))
        if target is None:
            return None
        rows = self._base.modules[target.module].out_features
        if target.fusion.roles == (role,):
            return rows
        if target.fusion.roles == GATE_UP:
            return rows // 2
        return None if heads is None else heads.sizes[QKV.index(role)]


def qkv_rows(
    sizes: tuple[int, int, int] | None, rows: Rows, heads: AttentionHeads | None
) -> list[torch.Tensor] | str:
    """The rows of q, k and v in a fused projection, or why they can't be told."""
    if sizes is None:
        return "the base's attention heads are not known"
    plain = _after_another(sizes)
    if rows is Rows.ONE_AFTER_ANOTHER:
        return plain
    if heads is None or sizes != heads.sizes:
        return "the base's attention heads are not known"
    grouped = _by_group(heads)
    if rows is Rows.EITHER and any(not torch.equal(a, b) for a, b in zip(plain, grouped, strict=True)):
        return (
            "the name stands for rows by group in some models and for q, k, v one after another in others; "
            "say which by naming the modules linear_qkv or qkv_proj"
        )
    return grouped


def _after_another(sizes: Sequence[int]) -> list[torch.Tensor]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [torch.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _by_group(heads: AttentionHeads) -> list[torch.Tensor]:
    """Megatron's order: for each group of queries that share a key, those queries, the key and the value."""
    each = heads.query // heads.key_value
    every = torch.arange((heads.query + 2 * heads.key_value) * heads.width)
    groups = every.view(heads.key_value, each + 2, heads.width)
    return [part.reshape(-1) for part in (groups[:, :each], groups[:, each], groups[:, each + 1])]
