"""Which tokens of which sequences run in the next step.

There is no prefill and no decode phase: a sequence's ``num_computed_tokens`` catches up with its
length, as fast as the step's token budget allows. Rows that need one token go first; beside them only so
many tokens of prompts run that the answers are not held up for long. The rows of a sequence in one step
all run the same members of its mix: a chunk ends where an aLoRA sets in. And all rows of a step run on the
same weights, the base's or those of one merged copy: where several have work, they take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from time import monotonic

from manylora.server.engine.block_manager import BlockManager
from manylora.server.engine.order.fairness import Fairness
from manylora.server.engine.prompt_budget import PromptBudget
from manylora.server.engine.row_limit import RowLimit
from manylora.server.engine.sequence import Sequence
from manylora.server.kernels.inputs import BLOCK_SIZE
from manylora.server.kernels.weights import MergedWeights

MAX_WANTED_LOGITS = 32  # rows of a step whose logits are delivered: the lm_head runs on each
MAX_POOLED_STATES = 8 * MAX_WANTED_LOGITS  # rows whose states are pooled, which are not copied
MAX_LOGITS_BESIDE_ANSWERS = 8  # the same while answers wait for the step


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The ``count`` tokens of ``sequence`` from its ``num_computed_tokens`` on."""

    sequence: Sequence
    count: int


def rows_of(scheduled: Iterable[Scheduled]) -> int:
    """The rows of a step."""
    return sum(item.count for item in scheduled)


@dataclass(slots=True)
class _Room:
    """What is left of a step while it is put together."""

    rows: int
    wanted: int = MAX_POOLED_STATES  # a row with logits to deliver takes as much as eight to pool

    def count(self, sequence: Sequence, first: int) -> int:
        """How many tokens of ``sequence`` from ``first`` on fit."""
        count = sequence.rows_within_stage(first, min(len(sequence) - first, self.rows))
        return sequence.rows_within_logits(first, count, self.wanted // _share(sequence))

    def take(self, item: Scheduled, sign: int = 1) -> None:
        """Count ``item`` in; with ``sign`` -1 out again."""
        sequence = item.sequence
        self.rows -= sign * item.count
        wanted = sequence.num_wanted_logits(sequence.num_computed_tokens, item.count)
        self.wanted -= sign * wanted * _share(sequence)


def _share(sequence: Sequence) -> int:
    """What a wanted row of ``sequence`` takes of :attr:`_Room.wanted`."""
    return 1 if sequence.pooled is not None else MAX_POOLED_STATES // MAX_WANTED_LOGITS


@dataclass(slots=True)
class _Users:
    """The sequences, running or waiting, that run on the same weights."""

    weights: MergedWeights | None  # None: the base's
    count: int = 0
    last_turn: int = 0  # the last step that was theirs


class Scheduler:
    """Admission in order, a token budget per step, preemption of the youngest by recompute.

    The order is that of priorities, then of arrival; between clients, and between a tenant's adapters, that
    of the service they got.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        max_batch_tokens: int,
        prompt_budget: PromptBudget,
        fair: bool = True,
    ) -> None:
        """Without ``fair`` all are served as one client is."""
        self.blocks = blocks
        self._prompt_budget = prompt_budget
        # Every running sequence needs a row in every step, so no more of them than rows.
        self._max_running = min(max_num_seqs, max_batch_tokens)
        self._limit = RowLimit(max_batch_tokens)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._fairness = Fairness(enabled=fair)
        self.turns = self._fairness.turns  # None: there is no order but that of arrival
        self._preemptions = 0
        self._users: dict[int, _Users] = {}  # by identity of the weights they run on
        self._steps = 0
        self._repeated: list[Scheduled] = []  # the last step's work if the next one's is the same; else empty

    def add(self, sequence: Sequence) -> None:
        self._repeated = []
        weights = sequence.mix.merged
        self._users.setdefault(id(weights), _Users(weights)).count += 1
        self._fairness.join(sequence, self.running)
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a finished or aborted sequence out and free its blocks."""
        self._repeated = []
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        users = self._users[id(sequence.mix.merged)]
        users.count -= 1
        if not users.count:
            del self._users[id(sequence.mix.merged)]
        self._fairness.leave(sequence, self.running)
        self.blocks.free(sequence)

    def take_preemptions(self) -> int:
        """Preemptions since this was last asked."""
        count, self._preemptions = self._preemptions, 0
        return count

    def schedule(self) -> list[Scheduled]:
        """The next step's work, all of it on one set of weights. Empty only if nothing waits or runs.

        It is the list of the last step, the same object, if each of its sequences runs one token once more.
        """
        self._steps += 1
        self._limit.count()
        self._fairness.tell(self.running)
        if self._repeated and not (self.waiting and self._is_owed) and self._grow_repeated():
            next(iter(self._users.values())).last_turn = self._steps
            return self._repeated
        turns = list(self._users.values())
        if len(turns) > 1:
            turns.sort(key=lambda users: users.last_turn)
        for users in turns:
            if chosen := self._schedule(users):
                users.last_turn = self._steps
                self._repeated = chosen if self.will_repeat(chosen) else []
                return chosen
        return []

    def shrink(self, rows: int) -> bool:
        """Put fewer than ``rows`` rows into the next steps: one had so many, and memory did not last for it.

        False if it had one only, and there is no use in trying it again.
        """
        self._repeated = []
        return self._limit.shrink(rows)

    def will_repeat(self, chosen: list[Scheduled]) -> bool:
        """Whether the step after this one has the same work, should no sequence come or go until then."""
        return (
            len(chosen) == len(self.running)
            and len(self._users) == 1
            and (not self.waiting or len(self.running) >= self._max_running)
            and all(item.count == 1 and item.sequence.only_answers for item in chosen)
        )

    def _grow_repeated(self) -> bool:
        """Make room for one more token of each; False if blocks are short, and then of some only."""
        for item in self._repeated:
            length = item.sequence.num_computed_tokens + 1
            if length % BLOCK_SIZE == 1 and not self.blocks.grow(item.sequence, length):
                return False
        return True

    def _schedule(self, users: _Users) -> list[Scheduled]:
        chosen: dict[int, Scheduled] = {}
        weights = users.weights
        room, before = _Room(self._limit.rows), self._preemptions
        mine, others = self.running, 0
        if len(self._users) > 1:
            mine = [s for s in self.running if s.mix.merged is weights]
            elsewhere = (s for s in self.running if s.mix.merged is not weights)
            others = sum(s.num_uncomputed_tokens <= 1 for s in elsewhere)
        self._continue([s for s in mine if s.num_uncomputed_tokens <= 1], chosen, room)
        prompts = (s.num_uncomputed_tokens for s in chain(mine, self.waiting) if s.num_uncomputed_tokens > 1)
        joining = min(users.count, self._max_running) - len(chosen)
        room.rows = int(
            min(
                room.rows,
                self._prompt_budget.prompt_rows(len(chosen), prompts, joining=joining, others=others),
            )
        )
        if chosen or others:
            room.wanted = MAX_LOGITS_BESIDE_ANSWERS * (MAX_POOLED_STATES // MAX_WANTED_LOGITS)
        self._continue([s for s in mine if s.num_uncomputed_tokens > 1], chosen, room)
        if self._preemptions == before:  # else a newcomer would only be preempted again
            self._admit(chosen, room, weights)
        return list(chosen.values())

    def _continue(self, running: list[Sequence], chosen: dict[int, Scheduled], room: _Room) -> None:
        for sequence in running:
            if sequence not in self.running:  # preempted for one before it
                continue
            count = room.count(sequence, sequence.num_computed_tokens)
            if count and self._make_room(sequence, count, chosen, room):
                chosen[sequence.id] = Scheduled(sequence, count)
                room.take(chosen[sequence.id])

    def _make_room(self, sequence: Sequence, count: int, chosen: dict[int, Scheduled], room: _Room) -> bool:
        """Get blocks for ``count`` more tokens, preempting others; False if it was itself."""
        while not self.blocks.grow(sequence, sequence.num_computed_tokens + count):
            victim = self._victim()
            dropped = chosen.pop(victim.id, None)
            if dropped is not None:
                room.take(dropped, -1)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _victim(self) -> Sequence:
        """The youngest sequence that runs, of the client, and its adapter, that got the most service."""
        if not self._fairness.contended:
            return self.running[-1]
        self._fairness.settle(self.running)
        return max(reversed(self.running), key=self._fairness.standing)

    def _preempt(self, sequence: Sequence) -> None:
        self._repeated = []
        self.running.remove(sequence)
        self.blocks.free(sequence)
        sequence.num_computed_tokens, sequence.uncopied_from = 0, None
        if sequence.needs_prompt_scores:
            sequence.prompt_scores.clear()
        sequence.num_preemptions += 1
        self._preemptions += 1
        self.waiting.appendleft(sequence)

    def _admit(self, chosen: dict[int, Scheduled], room: _Room, weights: MergedWeights | None) -> None:
        """Start waiting sequences while rows, budget and blocks last; siblings wait for their leader."""
        full = self._is_full
        if not self._is_owed if full else room.rows <= 0:
            return
        for sequence in self._in_turn():
            if (room.rows <= 0 and not full) or (self._is_full and not self._is_owed):
                break
            if sequence.mix.merged is not weights or _follows_unfinished_prompt(sequence):
                continue
            if self._is_full and not self._gets_place(sequence, chosen, room):
                continue
            full = False  # whoever gave way has left a row as well
            if room.rows <= 0:
                break
            cached = self.blocks.match_prefix(sequence)
            if not self.blocks.fits(sequence, len(sequence)):  # the whole prompt, not just its first chunk
                self.blocks.free(sequence)
                break
            self.waiting.remove(sequence)
            first = sequence.first_to_compute(cached)
            count = room.count(sequence, first)
            self.blocks.grow(sequence, first + count)
            self._start(sequence, cached, first)
            if count:  # 0: its turn to deliver logits comes in a later step
                chosen[sequence.id] = Scheduled(sequence, count)
                room.take(chosen[sequence.id])

    @property
    def _is_full(self) -> bool:
        return len(self.running) >= self._max_running

    @property
    def _is_owed(self) -> bool:
        """Whether somebody waits who runs less than its share of the places, all of which are taken."""
        return self._fairness.contended and self._fairness.is_owed(self.running, self._max_running)

    def _gets_place(self, sequence: Sequence, chosen: dict[int, Scheduled], room: _Room) -> bool:
        """Preempt one of a client above its share for ``sequence``; False if nobody has to give way."""
        victim = self._fairness.takes_place_of(sequence, self.running, self._max_running)
        if victim is None:
            return False
        dropped = chosen.pop(victim.id, None)
        if dropped is not None:
            room.take(dropped, -1)
        self._preempt(victim)
        return True

    def _in_turn(self) -> Iterator[Sequence]:
        """What waits, each client's in its order; next is who got the least service until then."""
        waiting: Iterable[Sequence] = tuple(self.waiting)
        if any(sequence.priority for sequence in self.waiting):
            waiting = sorted(self.waiting, key=lambda sequence: sequence.priority)
        if not self._fairness.contended:
            return iter(waiting)
        self._fairness.settle(self.running)
        return self._fairness.in_turn(waiting)

    def _start(self, sequence: Sequence, cached: int, first: int) -> None:
        """Positions before ``cached`` are in the prefix cache; from ``first`` on they are computed."""
        sequence.num_computed_tokens = first
        sequence.uncopied_from = cached if cached < first else None
        if sequence.first_scheduled is None:
            sequence.first_scheduled, sequence.first_position = monotonic(), first
            sequence.num_cached_tokens = max(0, cached - sequence.num_virtual_tokens)
            self._fairness.admitted(sequence, cached)
        self.running.append(sequence)


def _follows_unfinished_prompt(sequence: Sequence) -> bool:
    """A sibling starts once the leader's prompt is computed, and then finds it in the prefix cache."""
    leader = sequence.leader
    return (
        leader is not None
        and leader.finish_reason is None
        and leader.num_computed_tokens < leader.num_virtual_tokens + leader.num_prompt_tokens
    )
