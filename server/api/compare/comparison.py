"""One comparison while it runs: a task that lets the targets answer each prompt and scores the references."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import anyio

from manylora.server.api.compare.answering import Answering
from manylora.server.api.compare.plan import Plan
from manylora.server.api.compare.progress import Progress
from manylora.server.api.compare.scoring import Scoring
from manylora.server.api.compare.submission import Submitter
from manylora.server.comparison.results import Report
from manylora.server.service import Service


class Comparison:
    """Runs a plan in a task of its own. Whoever has one must call :meth:`aclose`."""

    def __init__(self, service: Service, plan: Plan, stack: AsyncExitStack) -> None:
        """``stack`` holds the references of the plan's targets, and is closed with the comparison."""
        self.id = f"cmp-{uuid4().hex}"
        self._plan = plan
        self._stack = stack
        at_once = min(len(plan.targets), service.engine.max_open)
        answering_at_once = 1 if plan.one_by_one else at_once
        first_requests = answering_at_once if plan.cases[0].params else 1
        self._progress = Progress(len(plan.cases), [0] * len(plan.targets))
        self._submitter = Submitter(service, plan.targets, first_requests)
        self._answering = Answering(
            plan, self._submitter, self._progress, request_id=self.id, at_once=answering_at_once
        )
        self._scoring = Scoring(
            service, plan, self._submitter, self._progress, request_id=self.id, at_once=at_once
        )
        self._work = asyncio.create_task(self._run())
        self._work.add_done_callback(lambda _: self._wake())

    def _wake(self) -> None:
        self._submitter.begun.set()
        self._progress.changed.set()

    async def begun(self) -> None:
        """Return once the engine has taken the first requests; what keeps it from that is raised."""
        await self._submitter.begun.wait()
        if self._work.done():
            self._work.result()

    async def result(self) -> dict[str, Any]:
        """The comparison in JSON.

        Raises:
            QueueFull, EngineDead, GenerationFailed: it could not be completed.
        """
        return await asyncio.shield(self._work)

    async def progress(self) -> AsyncGenerator[dict[str, Any], None]:
        """How far the comparison is, whenever that has changed; ends when the work does."""
        while not self._work.done():
            await self._progress.changed.wait()
            self._progress.changed.clear()
            yield self._progress.json()

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
            self._progress.begin_case(index)
            answers = await self._answering.answers(case)
            report.add(await self._scoring.score(case, answers))
        return {"id": self.id, "object": "comparison", **report.json()}
