"""How far a merged copy is from the mix it was made of: the logits after every token of a few prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from manylora.adapters.fidelity.totals import Totals
from manylora.server.engine.async_engine import AsyncEngine, GenerateRequest
from manylora.server.engine.sequence import SamplingParams
from manylora.server.merged.variants import MergeError, Variant
from manylora.server.metrics.labels import OTHER
from manylora.server.residency.held_mix import HeldMix, RevisionMix
from manylora.server.residency.residency import Residency
from manylora.server.threads import LimitedWork

_TOGETHER = 4  # rows of logits compared at a time: the working memory stays in the cache
PROBES = (
    "The quick brown fox jumps over the lazy dog, and then it asks: why is the sky blue on a clear day?",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Dear customer, thank you for your message of 12 March. Your order 4711 will arrive on Friday.",
)


class MergeMeasure:
    """Runs probe prompts through a merged copy and its mix, in the batch with everything else."""

    def __init__(self, engine: AsyncEngine, worker: LimitedWork, prompts: Sequence[Sequence[int]]) -> None:
        """``worker`` runs what is done with whole vocabularies; ``prompts`` are token ids."""
        self._engine = engine
        self._worker = worker
        self._prompts = prompts

    async def measure(self, residency: Residency, variant: Variant) -> MergeError:
        """How far ``variant`` is from its mix.

        Raises:
            AdapterError: a member can't be brought to the device.
            EngineDead: the engine has ended.
        """
        members = tuple((residency.references.revision(e.digest), e.weight) for e in variant.entries)
        plain = RevisionMix(members, variant.model, OTHER, variant.key)
        with (
            HeldMix(residency, plain) as unmerged,
            HeldMix(residency, replace(plain, entries=()), copy=variant) as merged,
        ):
            await unmerged.admit()
            await merged.admit()
            return await self._compare(unmerged, merged)

    async def _compare(self, expected: HeldMix, found: HeldMix) -> MergeError:
        totals = Totals()
        for prompt in self._prompts:
            one, other = [await self._logits(prompt, held.share()) for held in (expected, found)]
            for rows in zip(one.split(_TOGETHER), other.split(_TOGETHER), strict=True):
                await self._worker.run(totals.add, *rows)
        return MergeError(totals.rows, totals.largest, totals.mean_kl, totals.top1_agreement)

    async def _logits(self, prompt: Sequence[int], held: HeldMix) -> torch.Tensor:
        """What follows each token of ``prompt`` [n, V] float32."""
        request = GenerateRequest(
            tuple(prompt[:1]),
            SamplingParams(max_tokens=0, temperature=0.0),
            given_ids=tuple(prompt[1:]),
            logits_from=0,
            salt=b"measuring",
        )
        stream = self._engine.submit(request, held)
        rows = [delta.logits.rows async for delta in stream if delta.logits is not None]
        return torch.cat(rows)
