"""Merges the mix that nearly all answers are for, and frees the copy when that has ended.

What counts is the share of the sequences being answered, looked at :data:`LOOKS` times a window: a step
runs on one set of weights, so a copy pays only while hardly anybody else is answered
(docs/performance.md). Nothing is counted while tokens are generated. A mix that is merged stays so until
others have twice the share that they may have when it is merged, or until half of its traffic is gone.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from manylora.adapters.errors import AdapterError
from manylora.adapters.mix import MixEntry, mix_digest
from manylora.server.merged.variants import Variant, Variants, VariantState
from manylora.server.metrics.metrics import Metrics
from manylora.server.periodic_task import PeriodicTask
from manylora.server.residency.held_mix import HeldMix

logger = logging.getLogger(__name__)

LOOKS = 30  # in a window


@dataclass(frozen=True)
class AutoMergeRules:
    """When a mix is worth a copy of its own."""

    share: float  # of the sequences being answered, over the window
    seconds: float  # the window
    sequences: float  # that the mix has at once, mean over the window


class TrafficWindow:
    """Which mixes the sequences of the last window were for. Mixes by digest; b"" is the base."""

    def __init__(self, rules: AutoMergeRules) -> None:
        self._rules = rules
        self._looks: deque[Mapping[bytes, int]] = deque(maxlen=LOOKS)

    def note(self, sequences: Mapping[bytes, int]) -> None:
        """One look: how many sequences of each mix are being answered."""
        self._looks.append(sequences)

    def leader(self) -> bytes | None:
        """The mix that the rules are true of over a whole window, if there is one."""
        if len(self._looks) < LOOKS:
            return None
        totals = sum((Counter(look) for look in self._looks), Counter())
        if not totals:
            return None
        ((digest, _),) = totals.most_common(1)
        return digest if digest and self._has(digest, self._rules.share, self._rules.sequences) else None

    def has_faded(self, digest: bytes) -> bool:
        """Whether a mix that was merged is not worth its copy any more."""
        return not self._has(digest, 2 * self._rules.share - 1, self._rules.sequences / 2)

    def share(self, digest: bytes) -> float:
        """The mix's share of all sequences."""
        everything = sum(sum(look.values()) for look in self._looks)
        return self._sequences(digest) / everything if everything else 0.0

    def _has(self, digest: bytes, share: float, sequences: float) -> bool:
        return self.share(digest) >= share and self._sequences(digest) / LOOKS >= sequences

    def _sequences(self, digest: bytes) -> int:
        return sum(look.get(digest, 0) for look in self._looks)


class AutoMerge:
    """Keeps the copy of the one mix that leads. Lives on the event loop."""

    def __init__(
        self,
        variants: Variants,
        answering: Callable[[], Iterable[HeldMix]],
        rules: AutoMergeRules,
        metrics: Metrics,
    ) -> None:
        """``answering`` gives, for every sequence being answered, what it runs with."""
        self._variants = variants
        self._answering = answering
        self._rules = rules
        self._metrics = metrics
        self._window = TrafficWindow(rules)
        self._leader: bytes | None = None  # whose copy is kept, or can't be made
        self._copy: Variant | None = None
        self._task = PeriodicTask(rules.seconds / LOOKS, self.look)

    def start(self) -> None:
        """Begin to look at the traffic."""
        self._task.start()

    async def close(self) -> None:
        """Stop."""
        await self._task.close()

    def copy_of(self, entries: Sequence[MixEntry]) -> Variant | None:
        """The copy that answers in place of a mix, if there is one by now."""
        copy = self._copy
        if copy is None or copy.state is not VariantState.READY:
            return None
        return copy if self._variants.find(entries) is copy else None

    async def look(self) -> None:
        """See what is being answered, and act on it."""
        seen: dict[bytes, HeldMix] = {}
        counts: Counter[bytes] = Counter()
        for held in self._answering():
            seen[held.revisions.digest] = held
            counts[held.revisions.digest] += 1
        self._window.note(counts)
        if self._leader is not None and self._window.has_faded(self._leader):
            await self._let_go()
        leader = self._window.leader()
        if leader is not None and leader != self._leader and leader in seen:
            await self._let_go()
            self._leader = leader
            await self._merge(seen[leader])

    async def _merge(self, held: HeldMix) -> None:
        entries = [MixEntry(revision.digest, weight) for revision, weight in held.entries]
        assert mix_digest(entries) == held.revisions.digest
        model, share = held.served_model, self._window.share(held.revisions.digest)
        try:
            copy = await self._variants.build(entries, model, automatic=True)
        except AdapterError as error:  # of a kind that can't be merged, or there is no room: left as it is
            logger.debug("%s is not merged, though most answers are its: %s", model, error)
            return
        self._copy = copy
        await self._variants.finished(copy)
        if copy.state is not VariantState.READY:
            logger.warning("%s could not be merged: %s", model, copy.error)
        elif copy.automatic:  # else somebody has asked for it, and it is not ours to free
            self._metrics.adapters.auto_merged()
            logger.info(
                "%s is merged, as %.0f%% of the answers are its: %.0f MB, %.1f s",
                *(model, 100 * share, copy.nbytes / 1e6, copy.seconds),
            )

    async def _let_go(self) -> None:
        copy, self._copy, self._leader = self._copy, None, None
        if copy is not None and copy.automatic:
            logger.info(
                "the merged copy of %s is freed: it is not what nearly all answers are for any more",
                copy.model,
            )
            await self._variants.free(copy, self._rules.seconds)
