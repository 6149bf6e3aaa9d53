"""A merged copy of the base's target weights, built matrix by matrix while the server runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.merge.survival import Survival
from manylora.adapters.merge.weights import merged_bias, merged_weight
from manylora.server.kernels.weights import MergedWeights
from manylora.server.model.decoders.decoder import Decoder

Members = Sequence[tuple[Mapping[str, ModuleDelta], float]]  # each by module name, with its mix weight


def merge(
    decoder: Decoder, members: Members, into: MergedWeights, survival: Survival | None = None
) -> Iterator[float]:
    """Fill ``into`` with ``W + Σ w_k ΔW_k``, computed in fp32 from the base and rounded once to its dtype.

    Yields after each matrix, and before it is put in its place, the share that is done, for the caller to
    pause or to stop. Matrices that no member changes stay the base's. Runs on any thread: nothing that a
    step reads is written. ``survival`` counts what rounding leaves of the change.
    """
    counted = Survival() if survival is None else survival
    groups = [(g, parts) for g in decoder.merge_groups if any(parts := _parts(decoder, members, g))]
    for done, (group, parts) in enumerate(groups, 1):
        merged = []
        for module, changes in zip(group, parts, strict=True):
            with torch.inference_mode():
                merged.append(_merged(decoder, module, changes, counted))
            yield (done - 1) / len(groups)
        with torch.inference_mode():
            into.put(group, [weight for weight, _ in merged], [bias for _, bias in merged])
        yield done / len(groups)


def merged_elements(decoder: Decoder, members: Members) -> int:
    """Weights in the matrices that :func:`merge` makes for ``members``."""
    sizes = [m.out_features * (m.in_features if m.linear else 1) for m in decoder.modules]
    return sum(
        sizes[m] for group in decoder.merge_groups if any(_parts(decoder, members, group)) for m in group
    )


def _parts(decoder: Decoder, members: Members, group: Sequence[int]) -> list[list[tuple[ModuleDelta, float]]]:
    """For each module of a group, what the members do to it."""
    names = [decoder.modules[module].name for module in group]
    return [[(deltas[name], weight) for deltas, weight in members if name in deltas] for name in names]


def _merged(
    decoder: Decoder, module: int, parts: Sequence[tuple[ModuleDelta, float]], survival: Survival
) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight, bias = decoder.weight(module), decoder.bias(module)
    if not parts:
        return weight, bias
    merged = merged_bias(bias, parts, weight)
    rounded = None if merged is None else merged.to(weight.dtype)
    if bias is not None and merged is not None and rounded is not None:
        survival.add(bias, merged, rounded)
    exact = merged_weight(weight, parts)
    result = exact.to(weight.dtype)
    survival.add(weight, exact, result)
    return result, rounded
