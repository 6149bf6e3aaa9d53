"""From messages and prompts to token ids, off the event loop when they are long."""

from __future__ import annotations

from manylora.server.api.request.messages import Message
from manylora.server.api.request.rendering import Rendering
from manylora.server.api.request.schemas import Prompt
from manylora.server.errors import ContextTooLong, RequestError
from manylora.server.model.text.conventions import TextConventions
from manylora.server.service import CHARS_PER_TOKEN, Service


async def chat_ids(
    service: Service,
    conventions: TextConventions,
    messages: list[Message],
    *,
    rendering: Rendering,
    ignored: list[str],
) -> tuple[int, ...]:
    """The token ids of a conversation.

    Args:
        service: the server.
        conventions: the template and the tokenizer.
        messages: the conversation.
        rendering: how it is written.
        ignored: takes the paths of fields that the template has no place for.

    Raises:
        ContextTooLong: by its length alone it can't fit.
        RequestError: the template refuses the messages, or has no place for the tool calls of one.
        MixError: the members of the mix bring different templates.
    """
    rendered = [message.for_template() for message in messages]
    _check_size(service, sum(len(message["content"]) for message in rendered), "messages")
    text = await rendering.render(conventions, rendered, ignored)
    _check_size(service, len(text), "messages")
    return await conventions.encode(text, add_special_tokens=False)  # the template writes its own


async def prompt_ids(
    service: Service,
    conventions: TextConventions,
    prompt: Prompt,
    *,
    add_special_tokens: bool = True,
    param: str = "prompt",
) -> tuple[int, ...]:
    """The token ids of one prompt that came in the field ``param``.

    Raises:
        ContextTooLong: by its length alone it can't fit.
        RequestError: an id outside the vocabulary.
    """
    if isinstance(prompt, str):
        _check_size(service, len(prompt), param)
        return await conventions.encode(prompt, add_special_tokens=add_special_tokens)
    vocab_size = conventions.tokenizer.vocab_size
    if len(prompt) > service.max_model_len:  # told by answer_budget; its ids need no look
        return prompt
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise RequestError(f"'{param}': token ids go from 0 to {vocab_size - 1}", param)
    return prompt


def _check_size(service: Service, chars: int, param: str) -> None:
    limit = service.max_model_len * CHARS_PER_TOKEN
    if chars > limit:
        raise ContextTooLong(
            f"'{param}' has {chars} characters; with a context window of {service.max_model_len} tokens "
            f"at most {limit} are taken",
            param,
        )
