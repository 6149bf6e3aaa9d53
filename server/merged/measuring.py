"""How far two models' answers are apart: the logits after every token of a few probe prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

import torch

from manylora.adapters.fidelity.totals import Totals
from manylora.server.engine.async_engine import AsyncEngine, GenerateRequest
from manylora.server.engine.sequence import SamplingParams
from manylora.server.merged.variants import MergeError
from manylora.server.residency.lease import Lease

_TOGETHER = 4  # rows of logits compared at a time: the working memory stays in the cache
PROBES = (
    "The quick brown fox jumps over the lazy dog, and then it asks: why is the sky blue on a clear day?",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Dear customer, thank you for your message of 12 March. Your order 4711 will arrive on Friday.",
)


async def compare(
    engine: AsyncEngine, worker: Executor, prompts: Sequence[Sequence[int]], expected: Lease, found: Lease
) -> MergeError:
    """Compare ``found`` with ``expected`` over the tokens of ``prompts``. Gives both leases back.

    Runs in the batch with everything else; what is done with whole vocabularies, in ``worker``.
    """
    loop = asyncio.get_running_loop()
    try:
        totals = Totals()
        for prompt in prompts:
            one, other = [await _logits(engine, prompt, lease.share()) for lease in (expected, found)]
            for rows in zip(one.split(_TOGETHER), other.split(_TOGETHER), strict=True):
                await loop.run_in_executor(worker, totals.add, *rows)
        return MergeError(totals.rows, totals.largest, totals.mean_kl, totals.top1_agreement)
    finally:
        expected.release()
        found.release()


async def _logits(engine: AsyncEngine, prompt: Sequence[int], lease: Lease) -> torch.Tensor:
    """What follows each token of ``prompt`` [n, V] float32."""
    request = GenerateRequest(
        tuple(prompt[:1]),
        SamplingParams(max_tokens=0, temperature=0.0),
        given_ids=tuple(prompt[1:]),
        logits_from=0,
        salt=b"measuring",
    )
    try:
        stream = engine.submit(request, lease)
    except BaseException:
        lease.release()
        raise
    rows = [delta.logits.rows async for delta in stream if delta.logits is not None]
    return torch.cat(rows)
