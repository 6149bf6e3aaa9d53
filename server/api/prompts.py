"""From messages and prompts to token ids, off the event loop when they are long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from server.api.limits import MAX_CHARS_PER_TOKEN
from server.api.schemas import Message, Prompt
from server.errors import ContextTooLong, RequestError
from server.model.tokenizer import Tokenizer
from server.service import Service

T = TypeVar("T")

_INLINE_CHARS = 20_000  # tokenized in under some 10 ms; more goes to a thread


async def chat_ids(
    service: Service, messages: list[Message], *, add_generation_prompt: bool = True
) -> tuple[int, ...]:
    """The token ids of a conversation under the base model's chat template.

    Raises:
        ContextTooLong: by its length alone it can't fit.
        RequestError: the template refuses the messages, or doesn't use a ``name`` that one of them has.
    """
    rendered = [message.for_template() for message in messages]
    size = sum(len(message["content"]) for message in rendered)
    _check_size(service, size, "messages")
    return tuple(await _run(size, lambda: _encode_chat(service.tokenizer, rendered, add_generation_prompt)))


def _encode_chat(tokenizer: Tokenizer, messages: list[dict[str, str]], prompt: bool) -> list[int]:
    """A ``name`` that changes nothing is refused rather than ignored."""
    named = [i for i, message in enumerate(messages) if "name" in message]
    if named:
        nameless = [{"role": message["role"], "content": message["content"]} for message in messages]
        if tokenizer.render_chat(nameless) == tokenizer.render_chat(messages):
            param = f"messages[{named[0]}].name"
            raise RequestError(
                f"'{param}' is not supported: this model's chat template has no place for names",
                param,
                "unsupported_parameter",
            )
    return tokenizer.encode_chat(messages, add_generation_prompt=prompt)


async def prompt_ids(service: Service, prompt: Prompt, *, add_special_tokens: bool = True) -> tuple[int, ...]:
    """The token ids of one prompt of the completions endpoint.

    Raises:
        ContextTooLong: by its length alone it can't fit.
        RequestError: an id outside the vocabulary.
    """
    if isinstance(prompt, str):
        _check_size(service, len(prompt), "prompt")
        encode = service.tokenizer.encode
        return tuple(await _run(len(prompt), lambda: encode(prompt, add_special_tokens=add_special_tokens)))
    vocab_size = service.tokenizer.vocab_size
    if len(prompt) > service.max_model_len:  # told by answer_budget; its ids need no look
        return prompt
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise RequestError(f"'prompt': token ids go from 0 to {vocab_size - 1}", "prompt")
    return prompt


def _check_size(service: Service, chars: int, param: str) -> None:
    limit = service.max_model_len * MAX_CHARS_PER_TOKEN
    if chars > limit:
        raise ContextTooLong(
            f"'{param}' has {chars} characters; with a context window of {service.max_model_len} tokens "
            f"at most {limit} are taken",
            param,
        )


async def _run(chars: int, work: Callable[[], T]) -> T:
    return work() if chars <= _INLINE_CHARS else await asyncio.to_thread(work)
