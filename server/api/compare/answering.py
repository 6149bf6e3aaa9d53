"""The answers of a comparison's targets to one prompt, with their times."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from time import monotonic

from manylora.server.api.compare.plan import CasePlan, Plan
from manylora.server.api.compare.progress import Progress
from manylora.server.api.compare.submission import Submitter, gather_or_cancel
from manylora.server.api.generate.generation import Generation
from manylora.server.comparison.results import Answer
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import SamplingParams


class Answering:
    """Lets the targets answer, all together or one after another."""

    def __init__(
        self, plan: Plan, submitter: Submitter, progress: Progress, *, request_id: str, at_once: int
    ) -> None:
        self._plan = plan
        self._submitter = submitter
        self._progress = progress
        self._request_id = request_id
        self._free = asyncio.Semaphore(at_once)

    async def answers(self, case: CasePlan) -> list[Answer]:
        """The answers to one prompt by target; none if only a reference is to be scored."""
        return await gather_or_cancel(
            self._answer(case, target, params) for target, params in enumerate(case.params)
        )

    async def _answer(self, case: CasePlan, target: int, params: SamplingParams) -> Answer:
        request = GenerateRequest(
            case.prompts[target],
            params,
            salt=self._plan.salt,
            request_id=self._request_id,
            tokenizer=self._plan.tokenizer,
        )
        async with self._free, self._submitter.generate(target, request) as generation:
            return await self._gather(generation, target, len(case.prompts[target]))

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
                self._progress.set_answered(target, len(token_ids))
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
