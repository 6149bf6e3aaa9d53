"""A comparison while it runs: answers, then the scores of each reference, window by window.

Divergences need whole distributions of several models at the same positions: 200 KB a position and model
with a vocabulary of 49,000. So references are scored in windows of positions, each by all models at once, and
a window's logits are gone before the next begins. What comes before a window is in the prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

import anyio
import torch

from manylora.server.api.compare.plan import CasePlan, Plan
from manylora.server.api.generate.answer import new_id
from manylora.server.api.generate.generation import Generation, submit
from manylora.server.api.http.error_context import blame
from manylora.server.api.http.limits import MAX_COMPARE_LOGITS_BYTES
from manylora.server.comparison.divergence import NotNumbers
from manylora.server.comparison.results import Answer, Case, ModelScores, Report, measure
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import SamplingParams
from manylora.server.errors import GenerationFailed, RequestError
from manylora.server.service import Service

T = TypeVar("T")

_WINDOW = 64  # positions at most


@dataclass
class _Progress:
    """How far the current prompt is; whoever waits for ``changed`` sees the latest state only."""

    answered: list[int]  # tokens by target
    case: int = 0
    stage: str = "answers"
    scored: int = 0  # positions
    positions: int = 0  # of the reference
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def update(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        self.changed.set()


class Comparison:
    """Runs a plan in a task of its own. Whoever has one must call :meth:`aclose`."""

    def __init__(self, service: Service, plan: Plan, stack: AsyncExitStack) -> None:
        """``stack`` holds the references of the plan's targets, and is closed with the comparison."""
        self._service = service
        self._plan = plan
        self._stack = stack
        self.id = new_id("cmp")
        self._progress = _Progress([0] * len(plan.targets))
        self._begun = asyncio.Event()
        at_once = min(len(plan.targets), service.engine.max_open)
        self._answering = asyncio.Semaphore(1 if plan.one_by_one else at_once)
        answers = bool(plan.cases[0].params)
        self._to_submit = at_once if answers and not plan.one_by_one else 1  # until it counts as begun
        self._scoring = asyncio.Semaphore(at_once)
        self._work = asyncio.create_task(self._run())
        self._work.add_done_callback(lambda _: self._wake())

    def _wake(self) -> None:
        self._begun.set()
        self._progress.changed.set()

    async def begun(self) -> None:
        """Return once the engine has taken the first requests; what keeps it from that is raised."""
        await self._begun.wait()
        if self._work.done():
            self._work.result()

    async def result(self) -> dict[str, Any]:
        """The comparison in JSON.

        Raises:
            QueueFull, EngineDead, GenerationFailed: it could not be completed.
        """
        return await asyncio.shield(self._work)

    async def progress(self) -> AsyncGenerator[dict[str, Any], None]:
        """How far it is, whenever that has changed; ends when the work does."""
        now = self._progress
        while not self._work.done():
            await now.changed.wait()
            now.changed.clear()
            yield {
                "object": "comparison.progress",
                "case": now.case,
                "cases": len(self._plan.cases),
                "stage": now.stage,
                "answered_tokens": list(now.answered),
                "scored_positions": now.scored,
                "positions": now.positions,
            }

    async def aclose(self) -> None:
        """Abort whatever still runs and give the references back. Idempotent; completes even if cancelled."""
        with anyio.CancelScope(shield=True):
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            await self._stack.aclose()

    async def _run(self) -> dict[str, Any]:
        plan = self._plan
        report = Report([(t.name, t.model) for t in plan.targets], plan.baseline, plan.tokenizer)
        for index, case in enumerate(plan.cases):
            self._progress.answered = [0] * len(plan.targets)
            self._progress.update(case=index, stage="answers", scored=0, positions=0)
            answers = await _together(
                self._answer(case, target, params) for target, params in enumerate(case.params)
            )
            report.add(await self._score(case, answers))
        return {"id": self.id, "object": "comparison", **report.json()}

    async def _answer(self, case: CasePlan, target: int, params: SamplingParams) -> Answer:
        async with self._answering:
            generation = await self._start(
                target,
                GenerateRequest(
                    case.prompts[target],
                    params,
                    salt=self._plan.salt,
                    request_id=self.id,
                    tokenizer=self._plan.tokenizer,
                ),
            )
            try:
                return await self._gather(generation, target, len(case.prompts[target]))
            finally:
                await generation.aclose()

    async def _gather(self, generation: Generation, target: int, prompt_tokens: int) -> Answer:
        began = monotonic()
        first: float | None = None
        text: list[str] = []
        token_ids: list[int] = []
        async with aclosing(generation.events()) as events:
            async for _, delta in events:
                text.append(delta.text)
                token_ids += delta.token_ids
                first = monotonic() if first is None else first
                self._progress.answered[target] = len(token_ids)
                self._progress.update()
        assert first is not None
        assert delta.finish_reason is not None
        return Answer(
            text="".join(text),
            token_ids=tuple(token_ids),
            finish_reason=delta.finish_reason.value,
            stop_reason=delta.stop_reason,
            prompt_tokens=prompt_tokens,
            cached_tokens=delta.cached_tokens,
            ttft=first - began,
            total=monotonic() - began,
        )

    async def _score(self, case: CasePlan, answers: Sequence[Answer]) -> Case:
        """Score the case's reference under every distinct model."""
        plan = self._plan
        if case.reference is None:
            source = answers[plan.baseline]
            text, tokens = source.text, source.token_ids
        else:
            text, tokens = case.reference
        self._progress.update(stage="scores", positions=len(tokens))
        models, distinct = self._distinct(case)
        found = tuple(ModelScores() for _ in distinct)
        width = self._window(len(distinct))
        for first in range(0, len(tokens), width):
            window = range(first, min(first + width, len(tokens)))
            rows = await _together(self._logits(case, target, tokens, window) for target in distinct)
            try:
                measured = await self._service.measuring.run(
                    measure, rows, tokens[window.start : window.stop], models[plan.baseline]
                )
            except NotNumbers as error:
                raise GenerationFailed("The model's logits are not numbers") from error
            for into, scores, apart in zip(found, measured.scores, measured.distances, strict=True):
                into.take(scores, apart)
            self._progress.update(scored=window.stop)
        return Case(
            tuple(answers), plan.baseline if case.reference is None else None, text, tokens, models, found
        )

    def _distinct(self, case: CasePlan) -> tuple[tuple[int, ...], list[int]]:
        """By target its model; and one target of each model.

        Targets are the same model if the same revisions with the same weights read the same tokens. That is
        computed once: twice it could differ by rounding, which depends on who shares the batch.
        """
        numbers: dict[object, int] = {}
        distinct: list[int] = []
        models: list[int] = []
        for index, target in enumerate(self._plan.targets):
            key = target.model, target.resolved.held.is_base, case.prompts[index]
            if key not in numbers:
                numbers[key] = len(distinct)
                distinct.append(index)
            models.append(numbers[key])
        return tuple(models), distinct

    def _window(self, models: int) -> int:
        row = 4 * self._plan.tokenizer.vocab_size
        return max(1, min(_WINDOW, MAX_COMPARE_LOGITS_BYTES // (models * row)))

    async def _logits(
        self, case: CasePlan, target: int, tokens: tuple[int, ...], window: range
    ) -> torch.Tensor:
        """Logits [len(window), V] for the positions ``window`` of ``tokens``, each given all before it."""
        prompt = case.prompts[target]
        request = GenerateRequest(
            prompt,
            SamplingParams(max_tokens=0),
            salt=self._plan.salt,
            request_id=self.id,
            given_ids=tokens[: window.stop - 1],
            logits_from=len(prompt) - 1 + window.start,
        )
        async with self._scoring:
            generation = await self._start(target, request)
            try:
                return await _rows(generation, request.logits_from or 0, len(window))
            finally:
                await generation.aclose()

    async def _start(self, target: int, request: GenerateRequest) -> Generation:
        """Submit a request to a target, held once more: nobody waits for adapters and has others already."""
        with (
            self._plan.targets[target].resolved.held.again() as held,
            blame(f"targets[{target}]", RequestError),
        ):
            generation = await submit(self._service, held, [request])
        self._to_submit -= 1
        if self._to_submit == 0:
            self._begun.set()
        return generation


async def _rows(generation: Generation, first: int, count: int) -> torch.Tensor:
    """The ``count`` rows of logits that a sequence delivers from token ``first`` on."""
    rows = torch.empty(0)
    async with aclosing(generation.events()) as events:
        async for _, delta in events:
            if delta.logits is not None:
                if not len(rows):
                    rows = torch.empty(count, delta.logits.rows.shape[1])
                at = delta.logits.first - first
                rows[at : at + len(delta.logits.rows)] = delta.logits.rows
    assert len(rows) == count
    return rows


async def _together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results. If one fails, or this is cancelled, the others are cancelled and have ended."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
