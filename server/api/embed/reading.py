"""Texts that are read in one batch with everything else: their tokens, and what the engine makes of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import torch
from fastapi import Request

from manylora.adapters.format.pooling import PoolingConfig
from manylora.server.api.embed.body import ReadingBody
from manylora.server.api.embed.pooling import Choose
from manylora.server.api.generate.generate import Resolved, resolved
from manylora.server.api.generate.generation import submit
from manylora.server.api.http.disconnect import unless_disconnected
from manylora.server.api.request.mix_request import read_mix, salt_of
from manylora.server.api.request.sampling import context_window
from manylora.server.api.request.schemas import Prompt
from manylora.server.api.request.token_ids import check_special_tokens, prompt_ids
from manylora.server.api.request.truncation import Ids
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import Delta, SamplingParams
from manylora.server.errors import ContextTooLong, RequestError
from manylora.server.service import Service

_AT_ONCE = 64  # sequences of one request that wait in the engine: others get their turn in between


@dataclass(frozen=True)
class Text:
    """A text, and the parameter to blame for it."""

    given: Prompt
    param: str


@dataclass(frozen=True)
class Read:
    """What came of a request's texts."""

    vectors: list[torch.Tensor]  # [D] float32, or logits [V], one a text
    tokens: list[int]  # of each text
    cached: int  # tokens taken from the prefix cache
    model: str  # what answered, by revision
    pooling: PoolingConfig | None = None  # how the vectors were made, and are to be told

    @property
    def usage(self) -> dict[str, object]:
        """Tokens as OpenAI counts them."""
        total = sum(self.tokens)
        details = {"cached_tokens": self.cached}
        return {"prompt_tokens": total, "total_tokens": total, "prompt_tokens_details": details}


class Reader:
    """Reads the texts of one request."""

    def __init__(self, service: Service, request: Request, body: ReadingBody, request_id: str) -> None:
        """
        Raises:
            RequestError: what ``body`` says of cutting or of special tokens can't be done.
            ModelNotFound, MixError, AdapterNameError: its model string is none.
        """
        self._service, self._request, self._body = service, request, body
        self._truncation = body.truncation(service.max_model_len)
        check_special_tokens(request, body.allow_special_tokens, False)
        # An arm of an alias is judged by its answers, and this gives none.
        self._mix = replace(read_mix(service, body.model, body.adapters, body.user), counted=False)
        self._like = GenerateRequest(
            (), SamplingParams(max_tokens=0), salt=salt_of(body.cache_salt), request_id=request_id
        )

    async def pool(self, texts: Sequence[Text], choose: Choose) -> Read:
        """The pooled states of each text, as ``choose`` says for the mix.

        Raises:
            RequestError: a text is empty, or too long, or the adapter does not do this, or its members differ
                in how they do it.
            AdapterNotFound, AdapterTooLarge, MixError, AdapterUnavailable: the mix can't be served.
            ClientDisconnect, QueueFull, EngineDead: nobody is left to answer, or to do the work.
        """
        return await self._read(
            [[text] for text in texts],
            lambda ids, how: replace(
                self._like, prompt_ids=ids, pooling=None if how is None else how.pooling
            ),
            lambda delta: delta.pooled,
            choose,
        )

    async def last_logits(self, texts: Sequence[Sequence[Text]]) -> Read:
        """What should follow each text, which may be given in parts. Raises as :meth:`pool`."""
        return await self._read(
            texts,
            lambda ids, _: replace(self._like, prompt_ids=ids, logits_from=len(ids) - 1),
            lambda delta: None if delta.logits is None else delta.logits.rows[0],
        )

    async def _read(
        self,
        texts: Sequence[Sequence[Text]],
        request_of: Callable[[Ids, PoolingConfig | None], GenerateRequest],
        result_of: Callable[[Delta], torch.Tensor | None],
        choose: Choose | None = None,
    ) -> Read:
        async with resolved(self._service, self._request, self._mix, embed=True) as found:
            pooling = None if choose is None else choose(found.conventions)
            ids = [await self._ids(found, parts) for parts in texts]
            requests = [request_of(own, pooling) for own in ids]
            vectors, cached = await unless_disconnected(
                self._request, self._gather(found, requests, result_of)
            )
            return Read(vectors, [len(own) for own in ids], cached, found.held.served_model, pooling)

    async def _ids(self, found: Resolved, parts: Sequence[Text]) -> Ids:
        conventions, special = found.conventions, self._body.add_special_tokens is not False
        most, param = self._service.max_model_len - conventions.virtual_tokens, parts[0].param
        ids: Ids = ()
        for text in parts:  # special tokens begin a text, not its parts
            ids += await prompt_ids(
                self._service,
                conventions,
                text.given,
                add_special_tokens=special and not ids,
                param=text.param,
            )
        ids = self._truncation.cut(ids, most)
        if not ids:
            raise RequestError(f"'{param}' is empty: it must give at least one token", param)
        if len(ids) > most:
            window = context_window(self._service.max_model_len, conventions.virtual_tokens)
            raise ContextTooLong(
                f"{window} and the text has {len(ids)}; 'truncate_prompt_tokens': -1 cuts it", param
            )
        return ids

    async def _gather(
        self,
        found: Resolved,
        requests: Sequence[GenerateRequest],
        result_of: Callable[[Delta], torch.Tensor | None],
    ) -> tuple[list[torch.Tensor], int]:
        results: list[torch.Tensor] = []
        cached = 0
        at_once = min(_AT_ONCE, self._service.engine.max_open)
        for first in range(0, len(requests), at_once):
            some = requests[first : first + at_once]
            own: dict[int, torch.Tensor] = {}
            async with aclosing(self._deltas(found, some)) as deltas:
                async for index, delta in deltas:
                    result = result_of(delta)
                    if result is not None:
                        own[index] = result
                    cached += delta.cached_tokens
            results += [own[index] for index in range(len(some))]
        return results, cached

    async def _deltas(
        self, found: Resolved, requests: Sequence[GenerateRequest]
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        with found.held.again() as held:
            generation = await submit(
                self._service, held, requests, tenant=found.tenant, least=found.least, param="input"
            )
            try:
                async with aclosing(generation.events()) as events:
                    async for event in events:
                        yield event
            finally:
                await generation.aclose()
