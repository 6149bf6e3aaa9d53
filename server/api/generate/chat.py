"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from manylora.server.api.access.scopes import TENANT, needs
from manylora.server.api.generate.answer import respond
from manylora.server.api.generate.answer_grammar import answer_grammar
from manylora.server.api.generate.answer_plan import AnswerPlan, plan_answer
from manylora.server.api.generate.chat_format import ChatFormat
from manylora.server.api.generate.generate import generate
from manylora.server.api.generate.generation import Generation
from manylora.server.api.http.body import parse_body
from manylora.server.api.http.openapi import ADAPTER, BASE, LAST_ADAPTER, STREAMED, documented, example
from manylora.server.api.http.state import ServiceState, ignored_fields
from manylora.server.api.request.bad_words import bad_word_ids
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.mix_request import read_mix, salt_of
from manylora.server.api.request.sampling import answer_budget, check_fields, prompt_room, sampling_params
from manylora.server.api.request.schemas import ChatBody
from manylora.server.api.request.structured_output import compiled
from manylora.server.api.request.token_ids import ChatPrompt, Rendering, chat_prompt, check_special_tokens
from manylora.server.api.request.tools import read_use
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.errors import RequestError
from manylora.server.grammars.grammar import CompiledGrammar
from manylora.server.model.text.conventions import TextConventions
from manylora.server.service import Service

router = APIRouter(tags=["generate"])

_QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 64,
    "temperature": 0,
}
_ENTRIES = [{"name": ADAPTER, "weight": 0.7}, {"name": LAST_ADAPTER, "weight": 0.3}]
_EXAMPLES = {
    "base": example("The base model", {"model": BASE, **_QUESTION}),
    "stream": example(
        "A stream", {"model": BASE, **_QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    ),
    "adapter": example("An adapter", {"model": ADAPTER, **_QUESTION}),
    "mix": example("A mix of adapters", {"model": f"{ADAPTER}*0.7+{LAST_ADAPTER}*0.3", **_QUESTION}),
    "mix as JSON": example("The same mix", {"model": BASE, "adapters": _ENTRIES, **_QUESTION}),
}


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    responses=STREAMED,
    openapi_extra=documented(ChatBody, _EXAMPLES),
)
@needs(TENANT)
async def create_chat_completion(
    request: Request,
    service: ServiceState,
    body: Annotated[ChatBody, Depends(parse_body(ChatBody, rules_of(Place.CHAT).sift))],
) -> Response:
    """Answer ``messages`` with the base model, an adapter or a mix; as a stream if asked."""
    wanted, wanted_name = _max_tokens(body)
    _check(body)
    check_fields(body, service.max_model_len)
    check_special_tokens(request, body.allow_special_tokens)
    mix = read_mix(service, body.model, body.adapters, body.end_user)
    endpoint = ChatEndpoint(service, body, wanted, wanted_name, ignored_fields(request))
    return await generate(service, request, mix, endpoint)


class ChatEndpoint:
    """One conversation to be answered."""

    classifies = False
    input_param = "n"

    def __init__(
        self,
        service: Service,
        body: ChatBody,
        max_tokens: int | None,
        max_tokens_name: str,
        ignored: list[str],
        *,
        as_fits: bool = False,
    ) -> None:
        """
        Args:
            service: the server.
            body: what was asked for.
            max_tokens: the wanted length.
            max_tokens_name: the parameter under which the length came.
            as_fits: whether an answer may be shorter where the context has no room for the wanted length.
            ignored: takes the paths of fields that the chat template has no place for, and of keywords of a
                schema that answers are not held to.
        """
        self._service = service
        self._body = body
        self._max_tokens = max_tokens
        self._max_tokens_name = max_tokens_name
        self._as_fits = as_fits
        self._ignored = ignored
        self._use = (
            None if body.is_plain else read_use(body.tools, body.tool_choice, body.parallel_tool_calls)
        )
        self._plan = AnswerPlan()
        self._requests: list[GenerateRequest] = []

    @property
    def plan(self) -> AnswerPlan:
        """How the answer is read; known once the requests are."""
        return self._plan

    async def prompt(self, conventions: TextConventions) -> ChatPrompt:
        """The conversation in tokens, whether or not they leave room for an answer."""
        tools = None if self._use is None else self._use.for_template()
        rendering = _rendering(self._body, tools, reasons=conventions.answers.reasoning is not None)
        return await chat_prompt(
            self._service, conventions, self._body.messages, rendering=rendering, ignored=self._ignored
        )

    async def requests(self, conventions: TextConventions) -> list[GenerateRequest]:
        """What the engine is asked."""
        body, service = self._body, self._service
        wanted = None if self._as_fits else self._max_tokens
        virtual = conventions.virtual_tokens
        room = prompt_room(service.max_model_len, virtual, wanted, max(1, body.min_tokens or 0))
        prompt = await self.prompt(conventions)
        if body.truncate_prompt_tokens is not None:
            prompt = prompt.cut(body.truncation(service.max_model_len, side="left"), room)
        ids = prompt.ids
        grammar = await self._shape(conventions, in_reasoning=prompt.in_reasoning)
        names = ("messages", self._max_tokens_name)
        budget = answer_budget(
            len(ids),
            wanted,
            service.max_model_len,
            names,
            default=self._max_tokens,
            virtual_tokens=virtual,
        )
        top = 0 if body.top_logprobs is None else body.top_logprobs
        tokenizer = conventions.tokenizer
        params = sampling_params(
            body,
            max_tokens=budget,
            vocab_size=tokenizer.vocab_size,
            logprobs=top if body.logprobs else None,
            prompt_logprobs=body.prompt_logprobs,
            shown_tokens=self._plan.shown,
            grammar=grammar,
            bad_words=await bad_word_ids(conventions, body.bad_words) if body.bad_words else (),
        )
        n = 1 if body.n is None else body.n
        salt = salt_of(body.cache_salt)
        answer_id = body.answer_id("chatcmpl")
        self._requests = [GenerateRequest(ids, params, n, salt, answer_id, tokenizer, priority=body.priority)]
        return self._requests

    async def _shape(self, conventions: TextConventions, *, in_reasoning: bool) -> CompiledGrammar | None:
        """Settle how the answer is read; the grammar that it follows. Plain text needs neither."""
        if self._body.is_plain and conventions.answers.reasoning is None:
            return None
        self._plan = plan_answer(self._body, self._use, conventions, in_reasoning=in_reasoning)
        if self._use is not None and self._use.required:
            with suppress(RequestError):  # nobody has asked for calls that keep such a schema
                return await self._grammar(conventions, in_reasoning=in_reasoning, strict=True)
        return await self._grammar(conventions, in_reasoning=in_reasoning, strict=False)

    async def _grammar(
        self, conventions: TextConventions, *, in_reasoning: bool, strict: bool
    ) -> CompiledGrammar | None:
        spec = answer_grammar(self._body, self._use, conventions, in_reasoning=in_reasoning, strict=strict)
        return await compiled(self._service, spec, conventions.tokenizer, self._ignored)

    async def respond(self, request: Request, generation: Generation) -> Response:
        """A completion, or the stream of one."""
        form = ChatFormat(self._service, self._body, self._requests, generation.model, self._plan)
        return await respond(request, generation, form, stream=bool(self._body.stream))


def _max_tokens(body: ChatBody) -> tuple[int | None, str]:
    """The wanted length and the name it came under; the older name is an alias of the newer."""
    older, newer = body.max_tokens, body.max_completion_tokens
    if older is not None and newer is not None and older != newer:
        raise RequestError(
            f"'max_tokens' ({older}) and 'max_completion_tokens' ({newer}) differ: give one", "max_tokens"
        )
    name, wanted = ("max_tokens", older) if newer is None else ("max_completion_tokens", newer)
    if wanted == 0:
        raise RequestError(f"'{name}' must be at least 1", name)
    return wanted, name


def _check(body: ChatBody) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("'top_logprobs' is only allowed with 'logprobs': true", "top_logprobs")
    if body.continue_final_message and body.add_generation_prompt:
        raise RequestError(
            "'continue_final_message' goes on with a message, 'add_generation_prompt' begins another",
            "continue_final_message",
        )


def _rendering(body: ChatBody, tools: list[dict[str, Any]] | None, *, reasons: bool) -> Rendering:
    """How the conversation is written, and what tools the model hears of; ``reasons``: the model does."""
    given = {} if body.chat_template_kwargs is None else body.chat_template_kwargs
    variables: dict[str, Mapping[str, Any]] = {
        f"chat_template_kwargs.{name}": {name: value} for name, value in given.items()
    }
    own: dict[str, dict[str, Any]] = {}
    if body.reasoning_effort is not None:  # templates that only know on and off have a variable for that
        effort = body.reasoning_effort
        own["reasoning_effort"] = {"enable_thinking": effort != "none", "reasoning_effort": effort}
    if body.verbosity is not None:
        own["verbosity"] = {"verbosity": body.verbosity}
    for param, each in own.items():
        variables[param] = {name: value for name, value in each.items() if name not in given}
    return Rendering(
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        variables=variables,
        opposites=_opposites(body, reasons=reasons),
        tools=tools,
        special_tokens=body.allow_special_tokens,
    )


def _opposites(body: ChatBody, *, reasons: bool) -> dict[str, dict[str, Any]]:
    """Of what asks for reasoning: the opposite, by which it is seen whether the template knows of it.

    A model that doesn't reason does what is asked for without reasoning; one that reasons whatever its
    template is told does what is asked for with it.
    """
    opposites: dict[str, dict[str, Any]] = {}
    if body.reasoning_effort not in (None, "none"):
        opposites["reasoning_effort"] = {"enable_thinking": False, "reasoning_effort": "none"}
    if (body.chat_template_kwargs or {}).get("enable_thinking") and not reasons:
        opposites["chat_template_kwargs.enable_thinking"] = {"enable_thinking": False}
    return opposites
