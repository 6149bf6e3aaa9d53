"""A replica of the simulation: continuous batching, with prompts in pieces as our engine takes them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import ceil

from bench.cluster.adapter_memory import AdapterMemory, At, Hardware
from bench.cluster.law import Law
from bench.cluster.shared_machine import SharedMachine
from bench.cluster.workload import Request
from bench.steps import prompt_pairs
from manylora.server.engine.prompt_budget import PromptBudget

_LEARNED = 50  # equal steps after which the budget knows what they take


class _Prompt:
    """A request whose prompt is not computed yet."""

    __slots__ = ("left", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.left = request.prompt


class Replica:
    """One server. Every method takes the time at which it is called, in seconds."""

    def __init__(
        self,
        laws: tuple[Law, Law],
        hardware: Hardware,
        at: At,
        ended: Callable[[Request], None],
        machine: SharedMachine,
    ) -> None:
        """``laws`` are of a step while no other replica of ``machine`` computes, and while one does."""
        self._laws = laws
        self._machine = machine
        self._hardware = hardware
        self._prompt_budget = PromptBudget(hardware.max_stretch)
        self._at = at
        self._ended = ended
        self.memory = AdapterMemory(hardware, laws[0].adapter_bytes, at, self._admit)
        self.ongoing = 0
        self._prompts: deque[_Prompt] = deque()
        self._answering: list[
            tuple[int, int, Request]
        ] = []  # heap: the step after which each ends, and a number
        self._admitted = 0
        self._context = 0  # tokens of those that answer
        self._ranks = 0  # of their adapters
        self._batch: Counter[str] = Counter()  # their adapters
        self._distinct = 0  # ranks of those, each once
        self._steps = 0
        self._computing = False
        self._others = 0  # that compute on its machine
        self._rows = 0  # of the step that runs
        self._costs = (0.0, 0.0)  # of it, in seconds: alone, beside others
        self._span: tuple[float, float] | None = None  # of equal steps: when they began, and what one takes
        self._planned: tuple[float, int, list[Request]] = (0.0, 0, [])
        self._version = 0  # of what is planned

    def arrive(self, request: Request, now: float) -> None:
        """A request comes."""
        self.ongoing += 1
        self.memory.ask(request, now)

    def _admit(self, request: Request, now: float) -> None:
        """Its adapter is on the device."""
        self._prompts.append(_Prompt(request))
        if not self._computing:
            self._begin(now)
        elif self._span is not None:  # what was planned ends with the step that runs
            began, each = self._span
            steps = max(1, ceil((now - began) / each - 1e-9))
            self._plan(began + steps * each, steps, [])

    def _plan(self, when: float, steps: int, first_tokens: list[Request]) -> None:
        """``steps`` are over at ``when``; whatever was planned before is not."""
        self._span = None
        self._planned = when, steps, first_tokens
        self._version += 1
        version = self._version

        def stepped(now: float) -> None:
            if version == self._version:
                self._stepped(steps, first_tokens, now)

        self._at(when, stepped)

    def repace(self, others: int, now: float) -> None:
        """So many others compute on its machine from now on: what is left takes as much longer, or less."""
        before, self._others = self._step_seconds(), others
        change = self._step_seconds() / before if before else 1.0
        span = self._span
        when, steps, first_tokens = self._planned
        self._plan(now + (when - now) * change, steps, first_tokens)
        if span is not None:
            began, each = span
            self._span = (now - (now - began) * change, each * change)

    def _step_seconds(self) -> float:
        return self._costs[1 if self._others else 0]

    def _begin(self, now: float) -> None:
        """Begin a step, or as many equal ones as nothing changes in; none if there is nothing to compute."""
        answering = len(self._answering)
        room = self._hardware.max_num_seqs - answering
        budget = self._prompt_tokens(answering, min(room, len(self._prompts)))
        rows, ranks, distinct = answering, float(self._ranks), float(self._distinct)
        pairs = 0.0
        first_tokens: list[Request] = []
        for prompt in self._prompts:
            if budget <= 0 or room <= 0:
                break
            part = min(budget, prompt.left)
            prompt.left -= part
            pairs += prompt_pairs(part, prompt.request.prompt - prompt.left)
            budget, room = budget - part, room - 1
            rows, ranks = rows + part, ranks + part * prompt.request.rank
            if prompt.request.adapter not in self._batch:
                distinct += prompt.request.rank
            if not prompt.left:
                first_tokens.append(prompt.request)
        if not rows:
            if self._computing:
                self._computing = False
                self._machine.end(self, now)
            return
        if not self._computing:
            self._computing = True
            self._others = self._machine.begin(self, now)
        heads = answering + len(first_tokens)
        alone, beside = self._laws
        self._rows = rows
        step = rows, heads, float(self._context), ranks, distinct
        seconds = alone.seconds(*step, pairs=pairs)
        self._costs = (seconds, seconds if beside is alone else beside.seconds(*step, pairs=pairs))
        seconds = self._step_seconds()
        if rows > answering:
            self._plan(now + seconds, 1, first_tokens)
        else:
            steps = max(1, self._answering[0][0] - self._steps)
            self._plan(now + steps * seconds, steps, [])
            self._span = (now, seconds)

    def _prompt_tokens(self, answering: int, joining: int) -> int:
        """How many of the prompts' tokens a step takes on."""
        lengths = (prompt.left for prompt in self._prompts)
        some = self._prompt_budget.prompt_rows(answering, lengths, joining=joining)
        return int(min(self._hardware.max_batch_tokens - answering, some))

    def _stepped(self, steps: int, first_tokens: list[Request], now: float) -> None:
        """Steps are over: some sequences have their first token, some their last."""
        self._span = None
        for _ in range(min(steps, _LEARNED)):
            self._prompt_budget.observe(self._rows, self._step_seconds())
        self._steps += steps
        self._context += steps * len(self._answering)
        for request in first_tokens:
            self._prompts.popleft()
            self._answer(request, now)
        while self._answering and self._answering[0][0] <= self._steps:
            self._finish(heappop(self._answering)[2], now)
        self._begin(now)

    def _answer(self, request: Request, now: float) -> None:
        request.first_token = now
        self._admitted += 1
        heappush(self._answering, (self._steps + request.answer - 1, self._admitted, request))
        self._context += request.prompt
        self._ranks += request.rank
        self._batch[request.adapter] += 1
        if self._batch[request.adapter] == 1:
            self._distinct += request.rank

    def _finish(self, request: Request, now: float) -> None:
        self.ongoing -= 1
        self._context -= request.prompt + request.answer - 1
        self._ranks -= request.rank
        self._batch[request.adapter] -= 1
        if not self._batch[request.adapter]:
            del self._batch[request.adapter]
            self._distinct -= request.rank
        self.memory.release(request, now)
        self._ended(request)
