"""A replica of the simulation: an engine with continuous batching."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import ceil

from bench.cluster.adapter_memory import AdapterMemory, At, Hardware
from bench.cluster.law import Law
from bench.cluster.workload import Request


class _Prompt:
    """A request whose prompt is not computed yet."""

    __slots__ = ("left", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.left = request.prompt


class Replica:
    """One server. Every method takes the time at which it is called, in seconds."""

    def __init__(self, law: Law, hardware: Hardware, at: At, ended: Callable[[Request], None]) -> None:
        self._law = law
        self._hardware = hardware
        self._at = at
        self._ended = ended
        self.memory = AdapterMemory(hardware, law.adapter_bytes, at, self._admit)
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
        self._span: tuple[float, float] | None = None  # of equal steps: when they began, and what one takes
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
        self._computing = True
        self._version += 1
        version = self._version

        def stepped(now: float) -> None:
            if version == self._version:
                self._stepped(steps, first_tokens, now)

        self._at(when, stepped)

    def _begin(self, now: float) -> None:
        """Begin a step, or as many equal ones as nothing changes in; none if there is nothing to compute."""
        answering = len(self._answering)
        budget = self._hardware.max_batch_tokens - answering
        room = self._hardware.max_num_seqs - answering
        rows, ranks, distinct = answering, float(self._ranks), float(self._distinct)
        first_tokens: list[Request] = []
        for prompt in self._prompts:
            if budget <= 0 or room <= 0:
                break
            part = min(budget, prompt.left)
            prompt.left -= part
            budget, room = budget - part, room - 1
            rows, ranks = rows + part, ranks + part * prompt.request.rank
            if prompt.request.adapter not in self._batch:
                distinct += prompt.request.rank
            if not prompt.left:
                first_tokens.append(prompt.request)
        self._computing = rows > 0
        if not rows:
            return
        heads = answering + len(first_tokens)
        seconds = self._law.seconds(rows, heads, float(self._context), ranks, distinct)
        if rows > answering:
            self._plan(now + seconds, 1, first_tokens)
        else:
            steps = max(1, self._answering[0][0] - self._steps)
            self._plan(now + steps * seconds, steps, [])
            self._span = (now, seconds)

    def _stepped(self, steps: int, first_tokens: list[Request], now: float) -> None:
        """Steps are over: some sequences have their first token, some their last."""
        self._span = None
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
