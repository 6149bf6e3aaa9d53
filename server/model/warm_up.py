"""The steps that an accelerator runs before the first request: the largest one, and all that are captured.

Kernels are compiled, libraries take their workspaces, and decode steps and small chunks of prompts become
CUDA graphs, on the thread that will run them; afterwards next to nothing is captured any more. What memory
does not last for shows now.
"""

from __future__ import annotations

import logging
from time import monotonic

import numpy as np
import torch

from manylora.server.errors import ConfigError
from manylora.server.kernels.draws import Draws
from manylora.server.kernels.inputs import BLOCK_SIZE, AdapterPages, StepInputs, lora_inputs
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.parallel.leader import RanksLost

logger = logging.getLogger(__name__)

_TOLD = 8  # lines of the log about the captures


def warm_up(decoder: Decoder, *, rows: int, sequences: int, context: int) -> None:
    """Run the largest step of ``rows``, and capture those of up to ``sequences`` of ``context`` tokens.

    Only block 0 of the KV cache is written, which is nobody's.

    Raises:
        ConfigError: the device's memory does not last for it; names the options.
    """
    try:
        if decoder.capturing is not None:
            decoder.capturing.restart()  # the probe's were captured on a thread that has ended
        _run_largest(decoder, rows, sequences, context)
        _capture(decoder, rows, sequences, context)
    except (torch.OutOfMemoryError, RanksLost) as error:
        if not isinstance(error.__cause__ or error, torch.OutOfMemoryError):
            raise
        raise ConfigError(
            f"the accelerator's memory does not last for a step of {rows} tokens and {sequences} sequences: "
            f"lower --max-batch-tokens, --max-num-seqs, --kv-cache-memory or --adapter-memory ({error})"
        ) from error


def _run_largest(decoder: Decoder, rows: int, sequences: int, context: int) -> None:
    """Answers of all sequences but one, and of that as much of a prompt as fits beside them."""
    answers = min(sequences, rows) - 1
    chunk = min(rows - answers, context)
    inputs = _inputs([1] * answers + [chunk], context)
    logits = decoder.step(inputs)
    n = len(logits)
    # Drawn in the way that takes the most: sorted, cut off and summed.
    decoder.draw(
        Draws(
            logits,
            temperature=np.ones(n, np.float32),
            top_k=np.zeros(n, np.int64),
            top_p=np.full(n, 0.9),
            min_p=np.zeros(n, np.float32),
            uniform=np.full(n, 0.5),
        )
    )


def _capture(decoder: Decoder, rows: int, sequences: int, context: int) -> None:
    capturing = decoder.capturing
    if capturing is None:
        return
    began = monotonic()
    decoding = [([1] * n, tokens) for n, tokens in capturing.sizes(sequences, context)]
    # How long contexts are is nothing to a step of prompts.
    prompts = [(counts, max(counts)) for counts in capturing.chunks(rows, sequences, context)]
    for kind, steps in (("decode steps", decoding), ("steps of prompts", prompts)):
        for number, (counts, tokens) in enumerate(steps):
            if number % -(-len(steps) // _TOLD) == 0:
                logger.info("capturing %s: %d of %d", kind, number, len(steps))
            for adapted in (True, False):
                decoder.step(_inputs(counts, tokens, len(decoder.modules) if adapted else None))
    capturing.seal()
    logger.info(
        "captured %d decode steps and %d steps of prompts in %.1f s, %d could not be",
        2 * len(decoding), 2 * len(prompts), monotonic() - began, capturing.num_failed,
    )  # fmt: skip


def _inputs(counts: list[int], context: int, modules: int | None = None) -> StepInputs:
    """A step with so many tokens of each sequence, the last of ``context``, all of them in block 0.

    With ``modules`` all of them have an adapter, which does nothing.
    """
    lengths = np.array(counts)
    start = np.concatenate([[0], lengths.cumsum()])
    rows = int(start[-1])
    positions = context - np.repeat(start[1:], lengths) + np.arange(rows)
    nothing = AdapterPages("", np.zeros(modules or 0, np.int64), np.zeros(modules or 0, np.int32))
    return StepInputs(
        token_ids=np.zeros(rows, np.int64),
        positions=positions.astype(np.int64),
        slots=positions.astype(np.int64) % BLOCK_SIZE,
        query_start=start.astype(np.int32),
        context=np.full(len(counts), context, np.int32),
        block_tables=np.zeros((len(counts), -(-context // BLOCK_SIZE)), np.int32),
        logits_rows=start[1:].astype(np.int64) - 1,
        lora=None if modules is None else lora_inputs([[(nothing, 1.0)]] * len(counts)),
    )
