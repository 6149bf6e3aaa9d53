"""A/B tests in traffic: what the answers of each arm of an alias come to, and how users score answers.

Recorded once when an answer ends, never by token. The counts of this process since it started are what
its metrics show. What is not yet told the registry goes there every few seconds, where the counts of all
servers that share it add up and survive a restart.

An answer belongs to an arm if its request asked for the alias alone, at full strength. In a mix with
others, scaled, in a comparison or in a probe an alias is not what is being tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from time import monotonic

from cachetools import TTLCache

from manylora.adapters.registry.records import AliasArm, AliasRecord, ArmRecord
from manylora.server.engine.sequence import FinishReason, Sequence
from manylora.server.errors import AnswerUnknown
from manylora.server.experiments.arm_counts import add, answered, scored
from manylora.server.metrics.metrics import Metrics
from manylora.server.names.aliases import shown, shown_target
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.residency.held_mix import HeldMix

REMEMBERED = 50_000  # answers that can be scored; some 300 bytes each
REMEMBERED_SECONDS = 24 * 3600.0


@dataclass(slots=True)
class _Answer:
    """One response that can be scored."""

    model: str  # what answered, by revision
    label: str  # in the metrics
    arm: AliasArm | None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """What has become of a score."""

    model: str
    arm: tuple[str, str] | None  # alias and target; None: no alias was asked for, or the arm is there no more
    previous: float | None  # the score that it replaces


class AnswerCounter:
    """Counts the answers to one request for an arm of an alias."""

    def __init__(self, experiments: Experiments, arm: AliasArm) -> None:
        self._experiments = experiments
        self._arm = arm
        self._began = monotonic()

    def submitted(self) -> None:
        """Count the request: the engine has taken it, so its answers will end."""
        self._experiments.count(self._arm, {"requests": 1})

    def ended(self, sequence: Sequence, reason: FinishReason) -> None:
        """Count an answer that has ended."""
        self._experiments.count(self._arm, answered(sequence, reason, self._began, monotonic()))

    def failed(self, reason: FinishReason, count: int) -> None:
        """Count ``count`` answers that ended before they reached the engine."""
        self._experiments.count(self._arm, {"requests": 1, reason.value: count})


class Experiments:
    """The arms' counts, and the answers that can be scored. Lives on the event loop."""

    def __init__(self, mirror: RegistryMirror, base: str, metrics: Metrics) -> None:
        self._mirror = mirror
        self._base = base
        self._metrics = metrics
        self._lock = Lock()  # of the two below
        self._since_start: dict[AliasArm, dict[str, float]] = {}  # since this process started
        self._unsaved: dict[AliasArm, dict[str, float]] = {}  # of that, what the registry has not been told
        self._answers: TTLCache[tuple[str, str], _Answer] = TTLCache(REMEMBERED, REMEMBERED_SECONDS)
        metrics.show_arms(self._counted)

    def counter(self, arm: AliasArm) -> AnswerCounter:
        """What counts the answers to a request for ``arm``."""
        return AnswerCounter(self, arm)

    def remember(self, response_id: str, held: HeldMix, owner: str = "") -> None:
        """Let the response that ``held`` answers be scored from now on, by its owner."""
        self._answers[owner, response_id] = _Answer(held.served_model, held.revisions.label, held.arm)

    def score(self, response_id: str, score: float, owner: str = "") -> Scored:
        """Take a user's score in [0, 1] for a response of the owner; a second one replaces the first.

        Raises:
            AnswerUnknown: no such response, or it was too long ago.
        """
        answer = self._answers.get((owner, response_id))
        if answer is None:
            raise AnswerUnknown(
                f"this server knows no answer {response_id!r}: it takes scores for its last {REMEMBERED} "
                f"answers since it started, for {REMEMBERED_SECONDS / 3600:.0f} hours"
            )
        previous, answer.score = answer.score, score
        counts = scored(score)
        if previous is not None:
            add(counts, scored(previous, sign=-1))
        self._metrics.requests.scored(answer.label, score, previous)
        arm = answer.arm if answer.arm is not None and self.count(answer.arm, counts) else None
        return Scored(answer.model, None if arm is None else self._named(arm), previous)

    def count(self, arm: AliasArm, counts: Mapping[str, float]) -> bool:
        """Add ``counts`` to what the arm has; says whether there (still) is such an arm."""
        if not self._exists(arm):
            return False
        with self._lock:
            add(self._since_start.setdefault(arm, {}), counts)
            add(self._unsaved.setdefault(arm, {}), counts)
        return True

    def _counted(self) -> dict[tuple[str, str], dict[str, float]]:
        """What this process has counted of every arm that exists; called from any thread."""
        with self._lock:
            for arm in [arm for arm in self._since_start if not self._exists(arm)]:
                del self._since_start[arm]
            return {self._named(arm): dict(counts) for arm, counts in self._since_start.items()}

    def forget(self, alias: str, everything: bool) -> None:
        """Drop the counts of arms that an alias has no more, or of all its arms."""
        with self._lock:
            for counts in (self._since_start, self._unsaved):
                for arm in [arm for arm in counts if arm.alias == alias]:
                    if everything or not self._exists(arm):
                        del counts[arm]

    async def totals(self, alias: str) -> tuple[AliasRecord, dict[str, ArmRecord]]:
        """An alias, and what each of its arms has come to on all servers, by target.

        Raises:
            AdapterNotFound: there is no such alias.
            StoreError: the registry can't be asked.
        """
        await self.save()
        record, counted = await self._mirror.run(lambda registry: registry.arms.totals(alias))
        return shown(record, self._base), {shown_target(t, self._base): arm for t, arm in counted.items()}

    async def save(self) -> None:
        """Add the counts that are new to the registry. If that fails they stay new.

        Raises:
            StoreError: the registry can't be reached.
        """
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
        if not unsaved:
            return
        added = {(arm.alias, arm.target): counts for arm, counts in unsaved.items()}
        saving = asyncio.ensure_future(self._mirror.run(lambda registry: registry.arms.add(added)))

        def keep(done: asyncio.Future[None]) -> None:
            if done.cancelled() or done.exception() is not None:
                for arm, counts in unsaved.items():
                    with self._lock:
                        add(self._unsaved.setdefault(arm, {}), counts)

        saving.add_done_callback(keep)
        await asyncio.shield(saving)  # whoever is cancelled while it waits must not count twice

    def _named(self, arm: AliasArm) -> tuple[str, str]:
        return arm.alias, shown_target(arm.target, self._base)

    def _exists(self, arm: AliasArm) -> bool:
        alias = self._mirror.aliases.get(arm.alias)
        return alias is not None and any(target == arm.target for target, _ in alias.arms)
