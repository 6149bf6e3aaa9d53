"""Does the decoder compute what the original model computes? Asked once, before anything is served."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from server.errors import ModelRefused
from server.kernels.inputs import BLOCK_SIZE, StepInputs
from server.model.decoder import Decoder

# Largest accepted |difference| relative to the largest |logit|. bf16 rounds to 3 digits at every layer.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 2e-2}

_LENGTHS = (41, 19)
_CUTS = ((0, 23, 40, 41), (0, 18, 19, 19))  # chunk boundaries: prefill, a second chunk, a decode row
PROBE_BLOCKS = 1 + sum(-(-n // BLOCK_SIZE) for n in _LENGTHS)
PROBE_ROWS = sum(_LENGTHS)  # more than any of its steps has


@torch.inference_mode()
def probe(model: Any, decoder: Decoder, dtype: torch.dtype) -> float:
    """Compare the decoder's logits with those of ``model`` over chunked prefill and decode.

    Two sequences of different lengths run side by side through :data:`_CUTS`. Returns the largest
    relative difference found. Needs at least PROBE_BLOCKS blocks and overwrites them.

    Raises:
        ModelRefused: the decoder disagrees with the model.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(vocabulary, (n,), generator=generator) for n in _LENGTHS]
    device = next(model.parameters()).device
    expected = [model(input_ids=p[None].to(device), use_cache=False).logits[0].float().cpu() for p in prompts]
    worst = 0.0
    for step in range(1, len(_CUTS[0])):
        spans = [
            (s, cuts[step - 1], cuts[step]) for s, cuts in enumerate(_CUTS) if cuts[step] > cuts[step - 1]
        ]
        logits = decoder.step(_inputs(prompts, spans)).float().cpu()
        for got, (sequence, _, stop) in zip(logits, spans, strict=True):
            want = expected[sequence][stop - 1]
            difference = (got - want).abs().max() / want.abs().max()
            worst = max(worst, float(difference.nan_to_num(nan=float("inf"))))
    if worst > TOLERANCE[dtype]:
        raise ModelRefused(
            f"the {decoder.name} decoder disagrees with {type(model).__name__}: logits differ by {worst:.2g} "
            f"relative, accepted is {TOLERANCE[dtype]:g}"
        )
    return worst


def _inputs(prompts: list[torch.Tensor], spans: list[tuple[int, int, int]]) -> StepInputs:
    """The step that computes positions ``start : stop`` of each named prompt, in blocks of its own."""
    first_block = np.cumsum([1, *(-(-n // BLOCK_SIZE) for n in _LENGTHS)])
    lengths = [stop - start for _, start, stop in spans]
    positions = np.concatenate([np.arange(start, stop) for _, start, stop in spans])
    base = np.repeat([int(first_block[s]) * BLOCK_SIZE for s, _, _ in spans], lengths)
    ends = np.cumsum(lengths)
    width = max(-(-n // BLOCK_SIZE) for n in _LENGTHS)
    return StepInputs(
        token_ids=np.concatenate([prompts[s][start:stop].numpy() for s, start, stop in spans]),
        positions=positions,
        slots=base + positions,
        query_start=np.concatenate([[0], ends]).astype(np.int32),
        context=np.array([stop for _, _, stop in spans], np.int32),
        block_tables=np.stack(
            [np.arange(width, dtype=np.int32) + first_block[s] for s, _, _ in spans]
        ).astype(np.int32),
        logits_rows=(ends - 1).astype(np.int64),
        lora=None,
    )
