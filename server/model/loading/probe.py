"""Does the decoder compute what the original model computes? Asked once, before anything is served.

First for the base alone, then with synthetic adapters of uneven ranks on some of the modules, one of
which scales inputs and outputs as well, alone and as mixes, beside a sequence that runs the base: whatever
a kernel gets wrong about adapters on this model and this machine shows before a tenant sees it.

How far a right decoder may be off is measured on the model itself (``reference.py``), or was at an earlier
start (``kept_references.py``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

import numpy as np
import torch

from manylora.adapters.fidelity.probing import Hook, random_prompts
from manylora.server.errors import ModelRefused
from manylora.server.kernels.inputs import BLOCK_SIZE, AdapterPages, StepInputs, lora_inputs
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.loading.kept_references import KeptReferences
from manylora.server.model.loading.reference import Reference, reference
from manylora.server.model.loading.synthetic import COUNT, hooks_of, synthetic
from manylora.server.model.pages.pool import PagePool

logger = logging.getLogger(__name__)

_TYPICAL = 0.25  # share of what a row may be off that most rows may be off: right decoders have 0.02 to 0.1

_LENGTHS = (41, 19)
_CUTS = ((0, 23, 40, 41), (0, 18, 19, 19))  # chunk boundaries: prefill, a second chunk, a decode row
_ROWS = ((0, 2, 5, 11, 17, 22, 23, 31, 39, 40), (0, 2, 5, 11, 17, 18))  # positions that are compared
PROBE_BLOCKS = 1 + sum(-(-n // BLOCK_SIZE) for n in _LENGTHS)
PROBE_ROWS = sum(_LENGTHS)  # more than any of its steps has

_Mix = tuple[tuple[int, float], ...]  # (adapter, weight)
_BASE: tuple[tuple[_Mix, _Mix], ...] = (((), ()),)
_MIXES: tuple[tuple[_Mix, _Mix], ...] = (  # of either sequence
    (((0, 1.0),), ((0, 0.5), (1, -0.75))),
    ((), ((1, 1.0),)),
    (((2, 1.0),), ((1, 0.5), (2, -0.5))),
)


def probe(model: Any, decoder: Decoder, dtype: torch.dtype, kept: KeptReferences | None = None) -> float:
    """Compare the decoder's logits with those of ``model`` over chunked prefill and decode.

    Two sequences of different lengths run side by side through :data:`_CUTS`. Returns the largest
    relative difference found. Needs at least PROBE_BLOCKS blocks and overwrites them. With ``kept`` the model
    is asked only if no answer of it was kept, or the decoder disagrees with that.

    Raises:
        ModelRefused: the decoder disagrees with the model.
    """
    prompts = random_prompts(model, _LENGTHS)
    found = _found(decoder, prompts, ((), ()))
    complaint = f"the {decoder.name} decoder disagrees with {type(model).__name__}"
    return _compare(found, lambda: _expected(model, prompts, 1, dtype, {}), complaint, kept, "base")


def probe_adapters(
    model: Any,
    decoder: Decoder,
    pool: PagePool,
    dtype: torch.dtype,
    kept: KeptReferences | None = None,
    *,
    scales_inputs: Callable[[int], bool] | None = None,
) -> float:
    """Compare the decoder's logits under synthetic adapters with those of ``model``.

    Hooks add the adapters' deltas to the outputs of the model's modules. ``kept`` as for :func:`probe`;
    ``scales_inputs`` says of which modules adapters may scale inputs, None: of all.
    Skipped, with a log line, where the pool has no room for them; the pool is as it was afterwards.

    Raises:
        ModelRefused: the decoder's adapter arithmetic is wrong.
    """
    adapters = [synthetic(model, decoder, number, scales_inputs) for number in range(COUNT)]
    packed = [pool.pack(f"probe-{i}", weights) for i, weights in enumerate(adapters)]
    pages = [pool.reserve(adapter) for adapter in packed]
    taken = [p for p in pages if p is not None]
    prompts = random_prompts(model, _LENGTHS)
    try:
        if len(taken) < len(pages):
            logger.warning("adapters are not probed: --adapter-memory has no room for some small ones")
            return 0.0
        for place, adapter in zip(taken, packed, strict=True):
            pool.write(place, adapter)
        found = torch.cat(
            [
                _found(decoder, prompts, [[(taken[i], weight) for i, weight in mix] for mix in mixes])
                for mixes in _MIXES
            ]
        )
    finally:
        for place in taken:
            pool.release(place)
    members = [[(adapters[i], weight) for i, weight in mix] for mixes in _MIXES for mix in mixes]
    complaint = f"adapters on the {decoder.name} decoder ({decoder.kernels} kernels) are wrong"
    return _compare(
        found,
        lambda: _expected(model, prompts, len(_MIXES), dtype, hooks_of(members)),
        complaint,
        kept,
        "adapters" if scales_inputs is None else "taken-adapters",
    )


def _expected(
    model: Any, prompts: Sequence[torch.Tensor], times: int, dtype: torch.dtype, hooks: Mapping[str, Hook]
) -> Reference:
    """The original's logits of the compared positions of the prompts, ``times`` over."""
    rows = [
        (place * len(prompts) + sequence, position)
        for place in range(times)
        for sequence, positions in enumerate(_ROWS)
        for position in positions
    ]
    return reference(model, [*prompts] * times, rows, dtype, hooks)


def _compare(
    found: torch.Tensor,
    ask: Callable[[], Reference],
    complaint: str,
    kept: KeptReferences | None,
    asked: str,
) -> float:
    """What :func:`_judge` says by the answer to ``asked`` that was kept, else by that of the model.

    Raises:
        ModelRefused: the model was asked now, and ``found`` is not what it says.
    """
    known = None if kept is None else kept.read(asked)
    if known is not None and known.logits.shape == found.shape:
        try:
            return _judge(known, found, complaint)
        except ModelRefused as refusal:
            logger.info("%s, says what was kept of an earlier start; the model is asked again", refusal)
    began = monotonic()
    expected = ask()
    seconds = monotonic() - began
    error = _judge(expected, found, complaint)
    if kept is not None:
        kept.keep(asked, expected, seconds)
    return error


def _judge(expected: Reference, found: torch.Tensor, complaint: str) -> float:
    """The largest error of a row, relative to the spread of its logits.

    Raises:
        ModelRefused: a row, or most of them, is further off than rounding explains.
    """
    if not (expected.logits.isfinite().all() and expected.allowed.isfinite().all()):
        raise ModelRefused("the model's own logits are not all numbers")
    errors = expected.errors(found)
    tiny = torch.finfo(torch.float32).tiny
    relative = errors / expected.spread.clamp_min(tiny)
    shares = (errors / expected.allowed.clamp_min(tiny)).nan_to_num(nan=math.inf)
    if shares.max() > 1:
        row = int(shares.argmax())
        limit = expected.allowed[row] / expected.spread[row]
        raise ModelRefused(
            f"{complaint}: logits differ by {relative[row]:.2g} relative, rounding explains {limit:.2g}"
        )
    if shares.median() > _TYPICAL:
        raise ModelRefused(
            f"{complaint}: most logits differ by {relative.median():.2g} relative, "
            f"{shares.median() / _TYPICAL:.2g} times what rounding explains"
        )
    return float(relative.max())


def _found(
    decoder: Decoder,
    prompts: Sequence[torch.Tensor],
    mixes: Sequence[Sequence[tuple[AdapterPages, float]]],
) -> torch.Tensor:
    """The decoder's logits [n, V] of the compared positions, sequence by sequence: float32 on the CPU."""
    rows: dict[tuple[int, int], torch.Tensor] = {}
    for step in range(1, len(_CUTS[0])):
        spans = [
            (s, cuts[step - 1], cuts[step]) for s, cuts in enumerate(_CUTS) if cuts[step] > cuts[step - 1]
        ]
        wanted = [
            (s, position) for s, start, stop in spans for position in _ROWS[s] if start <= position < stop
        ]
        logits = decoder.step(_inputs(prompts, spans, mixes)).float().cpu()
        rows.update(zip(wanted, logits.clone(), strict=True))
    return torch.stack([rows[place] for place in sorted(rows)])


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
    begins = np.cumsum([0, *lengths])
    width = max(-(-n // BLOCK_SIZE) for n in _LENGTHS)
    tables = [np.arange(width, dtype=np.int32) + first_block[s] for s, _, _ in spans]
    compared = [
        begin + position - start
        for begin, (s, start, stop) in zip(begins, spans, strict=False)
        for position in _ROWS[s]
        if start <= position < stop
    ]
    return StepInputs(
        token_ids=np.concatenate([prompts[s][start:stop].numpy() for s, start, stop in spans]),
        positions=positions,
        slots=base + positions,
        query_start=begins.astype(np.int32),
        context=np.array([stop for _, _, stop in spans], np.int32),
        block_tables=np.stack(tables).astype(np.int32),
        logits_rows=np.array(compared, np.int64),
        lora=lora_inputs([mixes[s] for s, _, _ in spans]),
    )
