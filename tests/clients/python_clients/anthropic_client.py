"""Anthropic's client: messages, a stream, a count, faults. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import sys

import anthropic
from anthropic.types import MessageParam

HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]


def main(url: str, model: str, mix: str) -> None:
    """Ask the server at ``url``."""
    client = anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="none", max_retries=0)
    message = client.messages.create(
        model=model,
        max_tokens=8,
        messages=HELLO,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        metadata={"user_id": "ann"},
        extra_headers={"x-request-id": "my-id"},
    )
    assert message._request_id == "my-id"
    assert message.stop_reason in ("max_tokens", "end_turn")
    more = client.messages.create(
        model=mix,
        max_tokens=8,
        messages=[*HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}],
    )
    assert more.usage.output_tokens
    greedy = {"temperature": 0}
    with client.messages.stream(model=model, max_tokens=8, messages=HELLO, extra_body=greedy) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    whole = client.messages.create(model=model, max_tokens=8, messages=HELLO, extra_body=greedy)
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    assert text == "".join(block.text for block in whole.content if block.type == "text")
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (
        whole.stop_reason, whole.usage.output_tokens,
    )  # fmt: skip
    usage = whole.usage
    counted = client.messages.count_tokens(model=model, messages=HELLO)
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    refusal: anthropic.NotFoundError | None = None
    try:
        client.messages.create(model="nobody", max_tokens=8, messages=HELLO)
    except anthropic.NotFoundError as error:
        refusal = error
    assert refusal is not None
    assert "nobody" in str(refusal)
    assert refusal.request_id
    assert model in [each.id for each in client.models.list()]


if __name__ == "__main__":
    main(*sys.argv[1:])
