"""From messages and prompts to token ids, off the event loop when they are long."""

from __future__ import annotations

from manylora.adapters.format.text.content_marks import Marked
from manylora.server.api.request.schemas import Message, Prompt
from manylora.server.errors import ContextTooLong, RequestError
from manylora.server.model.text.conventions import TextConventions
from manylora.server.service import CHARS_PER_TOKEN, Service


async def chat_ids(
    service: Service,
    conventions: TextConventions,
    messages: list[Message],
    *,
    add_generation_prompt: bool = True,
    special_tokens: bool | None = None,
) -> tuple[int, ...]:
    """The token ids of a conversation.

    Args:
        service: the server.
        conventions: the template and the tokenizer.
        messages: the conversation.
        add_generation_prompt: whether the assistant's next turn is opened.
        special_tokens: whether control tokens are recognized in what messages say; None: as configured.

    Raises:
        ContextTooLong: by its length alone it can't fit.
        RequestError: the template refuses the messages, or doesn't use a ``name`` that one of them has.
        MixError: the members of the mix bring different templates.
    """
    rendered = [message.for_template() for message in messages]
    _check_size(service, sum(len(message["content"]) for message in rendered), "messages")
    await _check_names(conventions, rendered)
    allowed = service.config.allow_special_tokens if special_tokens is None else special_tokens
    marked = Marked(rendered) if allowed else await conventions.mark(rendered)
    text = await conventions.render(marked.messages, add_generation_prompt=add_generation_prompt)
    _check_size(service, len(text), "messages")
    if allowed:
        return await conventions.encode(text, add_special_tokens=False)  # the template writes its own
    return await conventions.encode_rendered(text, marked.mark)


async def _check_names(conventions: TextConventions, messages: list[dict[str, str]]) -> None:
    """A ``name`` that changes nothing is refused rather than ignored."""
    named = [i for i, message in enumerate(messages) if "name" in message]
    if not named:
        return
    nameless = [{"role": message["role"], "content": message["content"]} for message in messages]
    if await conventions.render(nameless) == await conventions.render(messages):
        param = f"messages[{named[0]}].name"
        raise RequestError(
            f"'{param}' is not supported: this model's chat template has no place for names",
            param,
            "unsupported_parameter",
        )


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
