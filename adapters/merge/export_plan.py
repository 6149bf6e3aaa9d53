"""What a merged model will consist of, settled and checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from manylora.adapters.base_models.checkpoint import FLOATS
from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.format.faults import Faults, some
from manylora.adapters.format.text.conventions import AdapterText
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.merge.experts.placing import place_experts
from manylora.adapters.merge.recipe import Member
from manylora.adapters.merge.texts import text_of
from manylora.adapters.merge.weights import Deltas
from manylora.adapters.mix import MixEntry, normalize

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MAX_SHARD_BYTES = 2 << 30


@dataclass(frozen=True, eq=False)
class PlannedTensor:
    """One tensor of the merged model, and where it comes from."""

    name: str  # as the base's files have it
    module: str | None  # the layer whose weight or bias it is, if adapters change that
    deltas: Deltas  # to that layer
    experts: tuple[
        Deltas, ...
    ]  # instead, to each expert's matrix that it holds: one [out, in] or [E, out, in]
    dtype: torch.dtype | None  # None: as it is stored, because it holds no floats
    nbytes: int  # in the result

    @property
    def is_changed(self) -> bool:
        """Whether adapters change it."""
        return self.module is not None or bool(self.experts)


@dataclass(frozen=True, eq=False)
class ExportPlan:
    """A merge that is known to be possible."""

    stored: StoredModel
    base_name: str
    members: tuple[Member, ...]  # equal ones added up
    shards: tuple[tuple[PlannedTensor, ...], ...]  # one is in memory at a time
    dtype: torch.dtype | None  # of all float tensors; None keeps each one's own
    text: AdapterText  # tokenizer and template that members bring along

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the result."""
        return sum(tensor.nbytes for shard in self.shards for tensor in shard)

    @property
    def parameters(self) -> int:
        """Numbers that the model consists of."""
        return sum(math.prod(info.shape) for info in self.stored.checkpoint.infos.values())

    @property
    def loaded_bytes(self) -> int:
        """What the larger of base and result takes as it is stored, and its largest tensor in float32."""
        infos = self.stored.checkpoint.infos.values()
        base = sum(math.prod(info.shape) * _itemsize(info.dtype) for info in infos)
        return max(base, self.nbytes) + 4 * max(math.prod(info.shape) for info in infos)

    @property
    def deltas(self) -> dict[str, Deltas]:
        """Per module, what is merged into it."""
        return deltas_of(self.members)


def _itemsize(dtype: str) -> int:
    """Bytes of one number, or 8 where it is no float."""
    return FLOATS[dtype].itemsize if dtype in FLOATS else 8


def deltas_of(members: Sequence[Member]) -> dict[str, Deltas]:
    """Per module, the members' changes with their weights."""
    found: dict[str, list[tuple[ModuleDelta, float]]] = {}
    for member in members:
        for name, delta in member.artifact.delta.items():
            found.setdefault(name, []).append((delta, member.weight))
    return {name: tuple(parts) for name, parts in found.items()}


def plan_export(
    stored: StoredModel,
    base_name: str,
    members: Sequence[Member],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ExportPlan:
    """Check that ``members`` can be merged into the weights of ``stored``. Reads no weights.

    Raises:
        ArtifactError: naming everything that can't be merged.
    """
    faults = Faults()
    if stored.quantized:
        faults.add(
            f"{base_name} holds quantized weights: adapters are merged into the original ones, because "
            "quantizing again would lose most of a small change"
        )
    for member in members:
        if member.artifact.activation is not None:
            faults.add(f"{member.name} acts only from certain tokens on (aLoRA): weights can't say that")
        if member.artifact.prompt is not None:
            faults.add(f"{member.name} puts virtual tokens before every text: weights can't say that")
        if member.artifact.pooling is not None:
            faults.add(f"{member.name} embeds and says how: a model that writes does not say that")
        if member.artifact.classes is not None:
            faults.add(f"{member.name} classifies: a causal language model has no place for its head")
        elif member.artifact.vocabulary is not None:
            faults.add(
                f"{member.name} changes the embeddings or the output head: it can be served, not merged"
            )
    used = _normalized(members)
    if not used:
        faults.add("nothing is left to merge: no adapters, or their weights add up to 0")
    text = text_of(used, faults)
    tensors = _tensors(stored, deltas_of(used), dtype, faults)
    faults.raise_any()
    return ExportPlan(stored, base_name, used, _split(tensors, max_shard_bytes), dtype, text)


def _normalized(members: Sequence[Member]) -> tuple[Member, ...]:
    by_digest = {member.artifact.digest: member for member in members}
    total = normalize(MixEntry(m.artifact.digest, m.weight) for m in members)
    return tuple(Member(by_digest[e.digest].name, by_digest[e.digest].artifact, e.weight) for e in total)


def _tensors(
    stored: StoredModel, deltas: dict[str, Deltas], dtype: torch.dtype | None, faults: Faults
) -> list[PlannedTensor]:
    infos = stored.checkpoint.infos
    module_of: dict[str, str] = {}
    biasless: list[str] = []
    experts, homeless = place_experts(stored, deltas)
    matrices = {name for stack in stored.stacks.values() for name in stack.matrices}
    for module, parts in deltas.items():
        if module in matrices:
            continue
        if any(part.rank or not _only_bias(part) for part, _ in parts):
            _place(stored, f"{module}.weight", module, module_of, homeless)
        if any(part.bias is not None or part.b_bias is not None or part.shifts for part, _ in parts):
            _place(stored, f"{module}.bias", module, module_of, biasless)
        elif any(part.output_scale is not None for part, _ in parts):
            _place(stored, f"{module}.bias", module, module_of, [])
    if homeless:
        faults.add(
            f"the base's files have no tensors {some(homeless, len(homeless))}: transformers fuses or "
            "splits them on loading; load the base there, save_pretrained it, and merge into that copy"
        )
    if biasless:
        faults.add(
            f"the adapters add biases that the base has no place for: {some(biasless, len(biasless))}; they "
            "can be served, not merged"
        )
    planned = (_planned(stored, name, module_of.get(name), deltas, dtype) for name in infos)
    return [replace(tensor, experts=experts.get(tensor.name, ())) for tensor in planned]


def _place(
    stored: StoredModel, tensor: str, module: str, module_of: dict[str, str], absent: list[str]
) -> None:
    """Note that ``module`` changes the stored tensor, or that there is none."""
    name = stored.file_name(tensor)
    if name is None:
        absent.append(tensor)
    else:
        module_of[name] = module


def _only_bias(delta: ModuleDelta) -> bool:
    parts = (delta.magnitude, delta.output_scale, delta.input_scale, delta.scale)
    return all(part is None for part in parts)


def _planned(
    stored: StoredModel, name: str, module: str | None, deltas: dict[str, Deltas], dtype: torch.dtype | None
) -> PlannedTensor:
    info = stored.checkpoint.infos[name]
    own = FLOATS.get(info.dtype)
    final = own if own is None or dtype is None else dtype
    size = stored.checkpoint[name].nbytes if final is None else math.prod(info.shape) * final.itemsize
    return PlannedTensor(name, module, deltas[module] if module is not None else (), (), final, size)


def _split(tensors: Sequence[PlannedTensor], limit: int) -> tuple[tuple[PlannedTensor, ...], ...]:
    """Runs of tensors of at most ``limit`` bytes; one that is larger alone has a shard of its own."""
    shards: list[list[PlannedTensor]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return tuple(tuple(shard) for shard in shards)
