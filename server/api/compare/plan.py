"""All that a comparison has to run, made from its body and checked before anything runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fastapi import Request

from manylora.adapters.errors import AdapterError, MixError
from manylora.server.api.compare.body import CompareBody
from manylora.server.api.generate.generate import Resolved, resolved
from manylora.server.api.http.error_context import Blamed, blame
from manylora.server.api.http.limits import DEFAULT_COMPARE_TOKENS, MAX_COMPARE_TOKENS
from manylora.server.api.http.state import ignored_fields
from manylora.server.api.request.bad_words import bad_word_ids
from manylora.server.api.request.mix_request import MixRequest, read_mix, salt_of
from manylora.server.api.request.sampling import answer_budget, sampling_params
from manylora.server.api.request.token_ids import Rendering, chat_ids, check_special_tokens, prompt_ids
from manylora.server.assembly import CHARS_PER_TOKEN
from manylora.server.engine.sequence import SamplingParams
from manylora.server.errors import ContextTooLong, RequestError, ServerError
from manylora.server.model.text.tokenizer import Tokenizer
from manylora.server.service import Service


@dataclass(frozen=True)
class Target:
    """One model of the comparison: as it was asked for, and the revisions that answer."""

    name: str
    resolved: Resolved

    @property
    def model(self) -> str:
        """The revisions that answer, as a model string."""
        return self.resolved.held.served_model


@dataclass(frozen=True)
class CasePlan:
    """One prompt of a comparison, as each target reads it."""

    prompts: tuple[tuple[int, ...], ...]  # token ids by target: their chat templates may differ
    params: tuple[SamplingParams, ...]  # of the answers, by target; empty if none are asked for
    reference: tuple[str, tuple[int, ...]] | None  # text and token ids; None: the baseline's answer


@dataclass(frozen=True)
class Plan:
    """A comparison whose targets are referenced and whose prompts are tokenized."""

    targets: tuple[Target, ...]
    cases: tuple[CasePlan, ...]
    baseline: int
    tokenizer: Tokenizer  # of all targets
    salt: bytes
    one_by_one: bool


async def plan_comparison(
    service: Service, request: Request, body: CompareBody, stack: AsyncExitStack
) -> Plan:
    """Resolve and tokenize everything. The references of the targets end with ``stack``.

    Raises:
        RequestError, ContextTooLong: naming the parameter.
        Blamed: a target can't be compared; names the entry of ``targets``.
    """
    body.check()
    check_special_tokens(request, body.allow_special_tokens, body.prompt is None)
    targets = tuple(
        [
            await stack.enter_async_context(_target(service, request, body.end_user, index, name))
            for index, name in enumerate(body.targets)
        ]
    )
    tokenizer = _shared_tokenizer(targets)
    if body.temperature is None:
        body = body.model_copy(update={"temperature": 0.0})
    ignored = ignored_fields(request)
    cases = [await _case(service, body, index, targets, ignored) for index in range(body.size)]
    salt = salt_of(body.cache_salt)
    return Plan(targets, tuple(cases), body.baseline, tokenizer, salt, bool(body.one_by_one))


@asynccontextmanager
async def _target(
    service: Service, request: Request, user: str | None, index: int, name: str
) -> AsyncGenerator[Target, None]:
    param = f"targets[{index}]"
    with blame(param, ServerError), blame(param):
        mix = read_mix(service, name)
    mix = MixRequest(mix.terms, param, user, counted=False, as_asked=True)
    async with resolved(service, request, mix) as found:
        yield Target(name, found)


def _shared_tokenizer(targets: tuple[Target, ...]) -> Tokenizer:
    first = targets[0].resolved.conventions.tokenizer
    for index, target in enumerate(targets):
        if target.resolved.conventions.tokenizer is not first:
            raise Blamed(
                MixError(
                    f"{target.name!r} and {targets[0].name!r} have different tokenizers: "
                    "they can't be compared token by token"
                ),
                f"targets[{index}]",
            )
    return first


async def _case(
    service: Service, body: CompareBody, index: int, targets: tuple[Target, ...], ignored: list[str]
) -> CasePlan:
    prompts = tuple(
        [
            await _ids(service, body, index, target, param=f"targets[{i}]", ignored=ignored)
            for i, target in enumerate(targets)
        ]
    )
    longest = max(
        len(ids) + target.resolved.conventions.virtual_tokens
        for ids, target in zip(prompts, targets, strict=True)
    )
    reference = await _reference(service, body, index, targets[0].resolved, longest)
    params: list[SamplingParams] = []
    for ids, target in zip(prompts, targets, strict=True):
        names = (_where(body), "max_tokens")
        default = max(DEFAULT_COMPARE_TOKENS, body.min_tokens or 0)
        conventions = target.resolved.conventions
        budget = answer_budget(
            len(ids),
            body.max_tokens,
            service.max_model_len,
            names,
            default=default,
            virtual_tokens=conventions.virtual_tokens,
        )
        vocab_size = conventions.tokenizer.vocab_size
        words = await bad_word_ids(conventions, body.bad_words)
        params.append(sampling_params(body, max_tokens=budget, vocab_size=vocab_size, bad_words=words))
    return CasePlan(prompts, tuple(params) if body.max_tokens != 0 else (), reference)


def _where(body: CompareBody) -> str:
    if body.prompt is not None:
        return "prompt"
    return "messages" if body.conversations is None else "conversations"


async def _ids(
    service: Service, body: CompareBody, index: int, target: Target, *, param: str, ignored: list[str]
) -> tuple[int, ...]:
    conventions = target.resolved.conventions
    if body.prompt is not None:
        special = body.add_special_tokens is not False
        return await prompt_ids(service, conventions, body.prompt[index], add_special_tokens=special)
    messages = body.messages if body.conversations is None else body.conversations[index]
    assert messages is not None
    with blame(param, AdapterError):
        rendering = Rendering(special_tokens=body.allow_special_tokens)
        return await chat_ids(service, conventions, messages, rendering=rendering, ignored=ignored)


async def _reference(
    service: Service, body: CompareBody, index: int, target: Resolved, prompt_tokens: int
) -> tuple[str, tuple[int, ...]] | None:
    """The given text and its tokens, which must fit behind the longest prompt."""
    if not isinstance(body.reference, str | tuple):
        return None
    text = body.reference if isinstance(body.reference, str) else body.reference[index]
    if len(text) > MAX_COMPARE_TOKENS * CHARS_PER_TOKEN:
        raise RequestError(f"'reference' must have 1 to {MAX_COMPARE_TOKENS} tokens", "reference")
    ids = await target.conventions.encode(text, add_special_tokens=False)
    if not 0 < len(ids) <= MAX_COMPARE_TOKENS:
        raise RequestError(
            f"'reference' must have 1 to {MAX_COMPARE_TOKENS} tokens, and has {len(ids)}", "reference"
        )
    if prompt_tokens + len(ids) > service.max_model_len:
        raise ContextTooLong(
            f"The context window is {service.max_model_len} tokens; the prompt has {prompt_tokens}, with any "
            f"virtual tokens before it, and the reference {len(ids)}",
            "reference",
        )
    return text, ids
