"""Does the decoder compute what the original model computes? Asked once, before anything is served.

First for the base alone, then with synthetic adapters of uneven ranks on some of the modules, one of
which scales inputs and outputs as well, alone and as mixes, beside a sequence that runs the base: whatever
a kernel gets wrong about adapters on this model and this machine shows before a tenant sees it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from manylora.adapters.fidelity.measures import relative_errors
from manylora.adapters.fidelity.probing import Hook, hooked, random_prompts
from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.server.errors import ModelRefused
from manylora.server.kernels.inputs import BLOCK_SIZE, AdapterPages, StepInputs, lora_inputs
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.decoders.quantize import weight_of
from manylora.server.model.pages.pool import PagePool

logger = logging.getLogger(__name__)

# Largest accepted difference of a row of logits, relative to the row's own spread. bf16 rounds to 3
# digits at every layer: two right decoders were 0.14 apart after 30 layers of random tokens (0.00001 in
# fp32). What is computed wrongly is of the order of 1.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.15}

_LENGTHS = (41, 19)
_CUTS = ((0, 23, 40, 41), (0, 18, 19, 19))  # chunk boundaries: prefill, a second chunk, a decode row
PROBE_BLOCKS = 1 + sum(-(-n // BLOCK_SIZE) for n in _LENGTHS)
PROBE_ROWS = sum(_LENGTHS)  # more than any of its steps has

_RANKS = ((0, 4, 9, 16, 1), (8, 0, 8), (0, 0, 2))  # of the modules in turn, for each adapter
_SCALED = 2  # the number of the adapter that also scales inputs or outputs and adds constants
_STRENGTH = 0.3  # of an adapter's output, relative to that of the module it changes
_MIXES: tuple[tuple[tuple[tuple[int, float], ...], ...], ...] = (
    (((0, 1.0),), ((0, 0.5), (1, -0.75))),  # (adapter, weight) of either sequence
    ((), ((1, 1.0),)),
    (((2, 1.0),), ((1, 0.5), (2, -0.5))),
)


def probe(model: Any, decoder: Decoder, dtype: torch.dtype) -> float:
    """Compare the decoder's logits with those of ``model`` over chunked prefill and decode.

    Two sequences of different lengths run side by side through :data:`_CUTS`. Returns the largest
    relative difference found. Needs at least PROBE_BLOCKS blocks and overwrites them.

    Raises:
        ModelRefused: the decoder disagrees with the model.
    """
    prompts = random_prompts(model, _LENGTHS)
    expected = [_expected(model, prompt) for prompt in prompts]
    worst = _worst_difference(decoder, prompts, expected, ((), ()))
    return _judge(worst, f"the {decoder.name} decoder disagrees with {type(model).__name__}", dtype)


def probe_adapters(model: Any, decoder: Decoder, pool: PagePool, dtype: torch.dtype) -> float:
    """Compare the decoder's logits under synthetic adapters with those of ``model``.

    Hooks add the adapters' deltas to the outputs of the model's modules. Skipped, with a log line, where
    the pool has no room for them; the pool is as it was afterwards.

    Raises:
        ModelRefused: the decoder's adapter arithmetic is wrong.
    """
    adapters = [_synthetic(model, decoder, number) for number in range(len(_RANKS))]
    packed = [pool.pack(f"probe-{i}", weights) for i, weights in enumerate(adapters)]
    pages = [pool.reserve(adapter) for adapter in packed]
    taken = [p for p in pages if p is not None]
    try:
        if len(taken) < len(pages):
            logger.warning("adapters are not probed: --adapter-memory has no room for some small ones")
            return 0.0
        for place, adapter in zip(taken, packed, strict=True):
            pool.write(place, adapter)
        worst = max(_difference_with(model, decoder, adapters, taken, mixes) for mixes in _MIXES)
    finally:
        for place in taken:
            pool.release(place)
    return _judge(
        worst, f"adapters on the {decoder.name} decoder ({decoder.kernels} kernels) are wrong", dtype
    )


def _difference_with(
    model: Any,
    decoder: Decoder,
    adapters: Sequence[Mapping[str, ModuleDelta]],
    pages: Sequence[AdapterPages],
    mixes: Sequence[Sequence[tuple[int, float]]],
) -> float:
    prompts = random_prompts(model, _LENGTHS)
    expected = []
    for prompt, mix in zip(prompts, mixes, strict=True):
        with hooked(model, _hooks([(adapters[i], weight) for i, weight in mix])):
            expected.append(_expected(model, prompt))
    resident = [[(pages[i], weight) for i, weight in mix] for mix in mixes]
    return _worst_difference(decoder, prompts, expected, resident)


def _judge(worst: float, complaint: str, dtype: torch.dtype) -> float:
    if worst > TOLERANCE[dtype]:
        raise ModelRefused(
            f"{complaint}: logits differ by {worst:.2g} relative, accepted is {TOLERANCE[dtype]:g}"
        )
    return worst


@torch.inference_mode()
def _expected(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    """The model's own logits [n, V] of every position."""
    device = next(model.parameters()).device
    logits: torch.Tensor = model(input_ids=prompt[None].to(device), use_cache=False).logits[0]
    return logits.float().cpu()


def _worst_difference(
    decoder: Decoder,
    prompts: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    mixes: Sequence[Sequence[tuple[AdapterPages, float]]],
) -> float:
    """The largest of the relative differences over the last row of every chunk; inf for NaN."""
    worst = 0.0
    for step in range(1, len(_CUTS[0])):
        spans = [
            (s, cuts[step - 1], cuts[step]) for s, cuts in enumerate(_CUTS) if cuts[step] > cuts[step - 1]
        ]
        logits = decoder.step(_inputs(prompts, spans, mixes)).float().cpu()
        wanted = torch.stack([expected[sequence][stop - 1] for sequence, _, stop in spans])
        worst = max(worst, float(relative_errors(wanted, logits).max()))
    return worst


def _inputs(
    prompts: Sequence[torch.Tensor],
    spans: list[tuple[int, int, int]],
    mixes: Sequence[Sequence[tuple[AdapterPages, float]]],
) -> StepInputs:
    """The step that computes positions ``start : stop`` of each named prompt, in blocks of its own."""
    first_block = np.cumsum([1, *(-(-n // BLOCK_SIZE) for n in _LENGTHS)])
    lengths = [stop - start for _, start, stop in spans]
    positions = np.concatenate([np.arange(start, stop) for _, start, stop in spans])
    base = np.repeat([int(first_block[s]) * BLOCK_SIZE for s, _, _ in spans], lengths)
    ends = np.cumsum(lengths)
    width = max(-(-n // BLOCK_SIZE) for n in _LENGTHS)
    tables = [np.arange(width, dtype=np.int32) + first_block[s] for s, _, _ in spans]
    return StepInputs(
        token_ids=np.concatenate([prompts[s][start:stop].numpy() for s, start, stop in spans]),
        positions=positions,
        slots=base + positions,
        query_start=np.concatenate([[0], ends]).astype(np.int32),
        context=np.array([stop for _, _, stop in spans], np.int32),
        block_tables=np.stack(tables).astype(np.int32),
        logits_rows=(ends - 1).astype(np.int64),
        lora=lora_inputs([mixes[s] for s, _, _ in spans]),
    )


def _synthetic(model: Any, decoder: Decoder, number: int) -> dict[str, ModuleDelta]:
    """Random weights whose output is about :data:`_STRENGTH` times that of the module, whatever its size."""
    generator = torch.Generator().manual_seed(number)
    ranks = _RANKS[number]
    found = {}
    for index, module in enumerate(decoder.modules):
        rank = ranks[index % len(ranks)]
        vectors = _vectors(module, index, generator) if number == _SCALED else {}
        if not module.linear or not (rank or vectors):
            continue
        spread = float(weight_of(model.get_submodule(module.name)).float().std())
        a = torch.randn(rank, module.in_features, generator=generator) / math.sqrt(module.in_features)
        b = torch.randn(module.out_features, rank, generator=generator) * spread
        scaling = _STRENGTH * math.sqrt(module.in_features / max(rank, 1))
        found[module.name] = ModuleDelta(a, b, scaling, **vectors)
    return found


def _vectors(module: TargetModule, index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """One kind of vector for each module in turn."""

    def random(width: int, mean: float) -> torch.Tensor:
        return mean + _STRENGTH * torch.randn(width, generator=generator)

    return (
        {"output_scale": random(module.out_features, 1.0)},
        {"input_scale": random(module.in_features, 1.0)},
        {"b_bias": random(module.out_features, 0.0)},
        {},
    )[index % 4]


def _hooks(mix: Sequence[tuple[Mapping[str, ModuleDelta], float]]) -> dict[str, Hook]:
    """For each module that the mix changes, a hook that adds the mix's deltas to its output."""
    names = {name for adapter, _ in mix for name in adapter}
    return {
        name: _Delta([(adapter[name], weight) for adapter, weight in mix if name in adapter])
        for name in names
    }


class _Delta:
    """A forward hook that adds the weighted changes of a module's mix, in fp32."""

    def __init__(self, members: Sequence[tuple[ModuleDelta, float]]) -> None:
        self._members = members

    def __call__(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        x, y = args[0], output.float()
        changes = (weight * _change(delta, module, x, y) for delta, weight in self._members)
        return (y + sum(changes)).to(output.dtype)


def _change(delta: ModuleDelta, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What an adapter without magnitudes adds to ``y``, the output of ``module`` for ``x``."""

    def here(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(x.device)

    change = (x.float() @ here(delta.a).T) @ here(delta.b).T * delta.scaling
    if delta.b_bias is not None:
        change = change + delta.scaling * here(delta.b_bias)
    if delta.output_scale is not None:
        change = change + (here(delta.output_scale) - 1) * y
    if delta.input_scale is not None:
        zero = module.forward(torch.zeros_like(x))
        change = change + module.forward((x * (here(delta.input_scale) - 1)).to(x.dtype)) - zero
    return change
