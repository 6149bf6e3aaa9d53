"""``POST /v1/completions``: plain continuation, for one prompt or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from manylora.server.api.access.scopes import TENANT, needs
from manylora.server.api.generate.answer import AnswerFrame, respond
from manylora.server.api.generate.generate import generate
from manylora.server.api.generate.generation import Generation
from manylora.server.api.generate.logprobs import CompletionLogprobs, join, prompt_logprobs
from manylora.server.api.http.body import parse_body
from manylora.server.api.http.limits import DEFAULT_COMPLETION_TOKENS, MAX_SEQUENCES
from manylora.server.api.http.openapi import BASE, STREAMED, documented, example
from manylora.server.api.http.state import ServiceState, ignored_fields
from manylora.server.api.request.bad_words import bad_word_ids
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.mix_request import read_mix, salt_of
from manylora.server.api.request.sampling import answer_budget, check_fields, prompt_room, sampling_params
from manylora.server.api.request.schemas import CompletionBody, Prompt
from manylora.server.api.request.structured_output import compiled_grammar
from manylora.server.api.request.token_ids import prompt_ids
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import Delta, TokenLogprob
from manylora.server.errors import RequestError
from manylora.server.grammars.grammar import CompiledGrammar
from manylora.server.model.text.conventions import TextConventions
from manylora.server.model.text.tokenizer import Tokenizer
from manylora.server.service import Service

router = APIRouter(tags=["generate"])

_TEXT = {"model": BASE, "prompt": "Once upon a time", "max_tokens": 32}
_EXAMPLES = {
    "text": example("Continue a text", _TEXT),
    "score": example("Log-probabilities of a text", {**_TEXT, "max_tokens": 0, "echo": True, "logprobs": 1}),
}


@router.post(
    "/v1/completions",
    summary="Continue a text",
    responses=STREAMED,
    openapi_extra=documented(CompletionBody, _EXAMPLES),
)
@needs(TENANT)
async def create_completion(
    request: Request,
    service: ServiceState,
    body: Annotated[CompletionBody, Depends(parse_body(CompletionBody, rules_of(Place.COMPLETIONS).sift))],
) -> Response:
    """Continue ``prompt`` with the base model, an adapter or a mix; as a stream if asked."""
    _check(body)
    check_fields(body, service.max_model_len)
    mix = read_mix(service, body.model, body.adapters, body.end_user)
    return await generate(service, request, mix, CompletionEndpoint(service, body, ignored_fields(request)))


class CompletionEndpoint:
    """Prompts to be continued."""

    classifies = False
    input_param = "n"

    def __init__(self, service: Service, body: CompletionBody, ignored: list[str]) -> None:
        """``ignored`` takes the paths of keywords of a schema that answers are not held to."""
        self._service = service
        self._body = body
        self._ignored = ignored
        self._requests: list[GenerateRequest] = []
        self._echoes: list[str] = []  # the text that each prompt's answers begin with, if that is wanted

    async def requests(self, conventions: TextConventions) -> list[GenerateRequest]:
        """Each prompt in tokens."""
        service, body = self._service, self._body
        special = body.add_special_tokens is not False
        cut = body.truncation(service.max_model_len, side="left").cut
        room = prompt_room(
            service.max_model_len, conventions.virtual_tokens, body.max_tokens, _default_tokens(body)
        )
        prompts = []
        for prompt in body.prompt:
            whole = await prompt_ids(service, conventions, prompt, add_special_tokens=special)
            ids = cut(whole, room)
            prompts.append(ids)
            if body.echo:
                self._echoes.append(_echo(conventions.tokenizer, prompt, ids, cut=len(ids) < len(whole)))
        request_id = body.answer_id("cmpl")
        grammar = await compiled_grammar(service, body, conventions.tokenizer, self._ignored)
        bad_words = await bad_word_ids(conventions, body.bad_words)
        self._requests = [
            _generate_request(
                service,
                body,
                ids,
                conventions=conventions,
                request_id=request_id,
                grammar=grammar,
                bad_words=bad_words,
            )
            for ids in prompts
        ]
        return self._requests

    async def respond(self, request: Request, generation: Generation) -> Response:
        """A completion, or the stream of one."""
        form = CompletionFormat(
            self._service, self._body, self._requests, model=generation.model, echoes=self._echoes
        )
        return await respond(request, generation, form, stream=bool(self._body.stream))


def _n(body: CompletionBody) -> int:
    return 1 if body.n is None else body.n


def _default_tokens(body: CompletionBody) -> int:
    """How long answers may be that don't say it."""
    return max(DEFAULT_COMPLETION_TOKENS, body.min_tokens or 0)


def _echo(tokenizer: Tokenizer, prompt: Prompt, ids: tuple[int, ...], *, cut: bool) -> str:
    """The text of a prompt of which ``ids`` are read."""
    if isinstance(prompt, str) and not cut:
        return prompt
    return tokenizer.decode(ids, skip_special_tokens=False)


def _check(body: CompletionBody) -> None:
    n = _n(body)
    if len(body.prompt) * n > MAX_SEQUENCES:
        raise RequestError(f"'prompt' times 'n' may make at most {MAX_SEQUENCES} answers", "n")
    if body.max_tokens == 0 and not body.echo:
        raise RequestError("'max_tokens' may be 0 only with 'echo': true", "max_tokens")


def _generate_request(
    service: Service,
    body: CompletionBody,
    ids: tuple[int, ...],
    *,
    conventions: TextConventions,
    request_id: str,
    grammar: CompiledGrammar | None,
    bad_words: tuple[tuple[int, ...], ...],
) -> GenerateRequest:
    tokenizer = conventions.tokenizer
    names = ("prompt", "max_tokens")
    budget = answer_budget(
        len(ids),
        body.max_tokens,
        service.max_model_len,
        names,
        default=_default_tokens(body),
        virtual_tokens=conventions.virtual_tokens,
    )
    params = sampling_params(
        body,
        max_tokens=budget,
        vocab_size=tokenizer.vocab_size,
        logprobs=body.logprobs,
        prompt_logprobs=_scored(body),
        grammar=grammar,
        bad_words=bad_words,
    )
    salt = salt_of(body.cache_salt)
    return GenerateRequest(ids, params, _n(body), salt, request_id, tokenizer, priority=body.priority)


def _scored(body: CompletionBody) -> int | None:
    """How many likeliest tokens are wanted for each token of the prompt; None: it is not scored."""
    wanted = [body.prompt_logprobs, body.logprobs if body.echo else None]
    return max((count for count in wanted if count is not None), default=None)


class CompletionFormat:
    """``text_completion``, whole and in chunks."""

    def __init__(
        self,
        service: Service,
        body: CompletionBody,
        requests: Sequence[GenerateRequest],
        *,
        model: str,
        echoes: Sequence[str],
    ) -> None:
        self.frame = AnswerFrame(service, body, requests, kind="text_completion", model=model)
        self.tokenizer = requests[0].tokenizer or service.tokenizer
        self.requests = requests
        self.echoes = echoes  # of each prompt, if they are wanted
        self.logprobs: list[CompletionLogprobs] | None = None
        count = self.frame.num_choices
        if body.logprobs is not None:
            skip = body.skip_special_tokens is not False
            as_ids = bool(body.return_tokens_as_token_ids)
            self.logprobs = [
                CompletionLogprobs(self.tokenizer, skip_special_tokens=skip, as_ids=as_ids)
                for _ in range(count)
            ]
        self.echoed_logprobs = body.logprobs if body.echo else None
        self.prompt_logprobs = body.prompt_logprobs
        self.returns_ids = bool(body.return_token_ids)
        self.begun = [False] * count
        self.gathered: list[list[dict[str, Any]]] = [[] for _ in range(count)]

    def chunks(self, choice: int, delta: Delta) -> list[dict[str, Any]]:
        entry = self._entry(choice, delta)
        held_back = not (entry["text"] or delta.logprobs or entry["finish_reason"] or self.returns_ids)
        return [] if held_back else [self.frame.chunk([entry])]

    def add(self, choice: int, delta: Delta) -> None:
        self.gathered[choice].append(self._entry(choice, delta))

    def last_chunks(self) -> list[dict[str, Any]]:
        return self.frame.last_chunks()

    def whole(self) -> dict[str, Any]:
        return self.frame.whole([self._choice(parts) for parts in self.gathered])

    def _choice(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **parts[0],  # has what is told once
            **parts[-1],
            "text": "".join(part["text"] for part in parts),
            "logprobs": None if self.logprobs is None else join([part["logprobs"] for part in parts]),
            **({"token_ids": [i for part in parts for i in part["token_ids"]]} if self.returns_ids else {}),
        }

    def _entry(self, choice: int, delta: Delta) -> dict[str, Any]:
        """One choice of a chunk; the first of each choice carries the echo."""
        self.frame.count(choice, delta)
        first, self.begun[choice] = not self.begun[choice], True
        echo = self.echoes[choice // self.frame.n] if first and self.echoes else ""
        return {
            "index": choice,
            "text": echo + delta.text,
            "logprobs": self._logprobs(choice, delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            **self._ids(choice, delta, first=first),
            **self._scores(delta),
        }

    def _ids(self, choice: int, delta: Delta, *, first: bool) -> dict[str, Any]:
        """vLLM's fields with token ids, if they are wanted: the prompt's once, the answer's as they come."""
        if not self.returns_ids:
            return {}
        prompt = self.requests[choice // self.frame.n].prompt_ids
        return {**({"prompt_token_ids": prompt} if first else {}), "token_ids": delta.token_ids}

    def _scores(self, delta: Delta) -> dict[str, Any]:
        if self.prompt_logprobs is None or not delta.prompt_logprobs:
            return {}
        scores = [_cut(entry, self.prompt_logprobs) for entry in delta.prompt_logprobs]
        return {"prompt_logprobs": prompt_logprobs(self.tokenizer, scores)}

    def _logprobs(self, choice: int, delta: Delta) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        entries: list[tuple[int, TokenLogprob | None]] = []
        if delta.prompt_logprobs and self.echoed_logprobs is not None:
            ids = self.requests[choice // self.frame.n].prompt_ids
            scores = [_cut(entry, self.echoed_logprobs) for entry in delta.prompt_logprobs]
            entries.extend(zip(ids, scores, strict=True))
        entries.extend((entry.token_id, entry) for entry in delta.logprobs)
        return self.logprobs[choice].take(entries)


def _cut(entry: TokenLogprob | None, count: int) -> TokenLogprob | None:
    """``entry`` with the ``count`` likeliest tokens only."""
    return None if entry is None else replace(entry, top=entry.top[:count])
