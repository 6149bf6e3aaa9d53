"""The scores of one reference under every model of a comparison, window by window.

Divergences need whole distributions of several models at the same positions: 200 KB a position and model
with a vocabulary of 49,000. So references are scored in windows of positions, each by all models at once, and
a window's logits are gone before the next begins. What comes before a window is in the prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing

import torch

from manylora.adapters.fidelity.measures import NotNumbers
from manylora.server.api.compare.plan import CasePlan, Plan
from manylora.server.api.compare.progress import Progress
from manylora.server.api.compare.submission import Submitter, gather_or_cancel
from manylora.server.api.generate.generation import Generation
from manylora.server.api.http.limits import MAX_COMPARE_LOGITS_BYTES
from manylora.server.comparison.results import Answer, Case, ModelScores, measure
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import SamplingParams
from manylora.server.errors import GenerationFailed
from manylora.server.service import Service

_MAX_WINDOW = 64  # positions


class Scoring:
    """Scores references under the models of a comparison."""

    def __init__(
        self,
        service: Service,
        plan: Plan,
        submitter: Submitter,
        progress: Progress,
        *,
        request_id: str,
        at_once: int,
    ) -> None:
        self._service = service
        self._plan = plan
        self._submitter = submitter
        self._progress = progress
        self._request_id = request_id
        self._free = asyncio.Semaphore(at_once)

    async def score(self, case: CasePlan, answers: Sequence[Answer]) -> Case:
        """One prompt's answers, with its reference scored under every distinct model.

        Raises:
            GenerationFailed: a model's logits are not numbers.
        """
        baseline = self._plan.baseline
        if case.reference is None:
            source = answers[baseline]
            text, tokens = source.text, source.token_ids
        else:
            text, tokens = case.reference
        self._progress.begin_scores(len(tokens))
        models, targets = self._distinct_models(case)
        found = tuple(ModelScores() for _ in targets)
        for window in self._windows(len(tokens), len(targets)):
            await self._score_window(
                case, tokens, window, targets=targets, baseline=models[baseline], found=found
            )
            self._progress.set_scored(window.stop)
        return Case(tuple(answers), baseline if case.reference is None else None, text, tokens, models, found)

    def _distinct_models(self, case: CasePlan) -> tuple[tuple[int, ...], list[int]]:
        """By target the number of its model; and one target of each model.

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

    def _windows(self, tokens: int, models: int) -> Iterator[range]:
        """Ranges of positions that together cover ``tokens``; the logits of each fit the bound."""
        row_bytes = 4 * self._plan.tokenizer.vocab_size
        width = max(1, min(_MAX_WINDOW, MAX_COMPARE_LOGITS_BYTES // (models * row_bytes)))
        for first in range(0, tokens, width):
            yield range(first, min(first + width, tokens))

    async def _score_window(
        self,
        case: CasePlan,
        tokens: tuple[int, ...],
        window: range,
        *,
        targets: Sequence[int],
        baseline: int,
        found: Sequence[ModelScores],
    ) -> None:
        """Add one window's scores to ``found``, which has one entry for each of ``targets``."""
        rows = await gather_or_cancel(self._logits(case, target, tokens, window) for target in targets)
        try:
            measured = await self._service.measuring.run(
                measure, rows, tokens[window.start : window.stop], baseline
            )
        except NotNumbers as error:
            raise GenerationFailed("The model's logits are not numbers") from error
        for into, scores, distances in zip(found, measured.scores, measured.distances, strict=True):
            into.take(scores, distances)

    async def _logits(
        self, case: CasePlan, target: int, tokens: tuple[int, ...], window: range
    ) -> torch.Tensor:
        """Logits [len(window), V] for the positions ``window`` of ``tokens``, each given all before it."""
        prompt = case.prompts[target]
        first = len(prompt) - 1 + window.start
        request = GenerateRequest(
            prompt,
            SamplingParams(max_tokens=0),
            salt=self._plan.salt,
            request_id=self._request_id,
            given_ids=tokens[: window.stop - 1],
            logits_from=first,
        )
        async with self._free, self._submitter.generate(target, request) as generation:
            return await _logit_rows(generation, first, len(window))


async def _logit_rows(generation: Generation, first: int, count: int) -> torch.Tensor:
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
