"""Anthropic: messages, streams, tools, counts, an error. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import sys
from typing import Any

import anthropic

HELLO: Any = [{"role": "user", "content": "Hello"}]
GREEDY = {"temperature": 0}
TRIP: Any = {
    "name": "trip",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def main(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    client = anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="none", max_retries=0)
    for model in models:
        messages(client, model)
        streams(client, model)
        tools(client, model)
    refusal: anthropic.NotFoundError | None = None
    try:
        client.messages.create(model="nobody", max_tokens=8, messages=HELLO)
    except anthropic.NotFoundError as error:
        refusal = error
    assert refusal is not None
    assert "nobody" in str(refusal)
    assert refusal.request_id
    assert models[0] in [each.id for each in client.models.list()]


def messages(client: anthropic.Anthropic, model: str) -> None:
    """A message with what coding tools send, and its tokens."""
    message = client.messages.create(
        model=model,
        max_tokens=64_000,
        messages=HELLO,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        stop_sequences=["a", "e", "i", "o", "u", " "],
        metadata={"user_id": "ann"},
        extra_headers={"x-request-id": "my-id"},
        timeout=100,
    )
    assert message.model_dump()["type"] == "message"
    assert message.stop_reason in ("stop_sequence", "end_turn", "model_context_window_exceeded")
    whole = client.messages.create(model=model, max_tokens=8, messages=HELLO)
    counted = client.messages.count_tokens(model=model, messages=HELLO)
    assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


def streams(client: anthropic.Anthropic, model: str) -> None:
    """What the events of a stream come to is the whole message."""
    asked: Any = {"model": model, "max_tokens": 8, "messages": HELLO, "extra_body": GREEDY}
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    whole = client.messages.create(**asked)
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    assert text == "".join(block.text for block in whole.content if block.type == "text")
    assert streamed.stop_reason == whole.stop_reason
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def tools(client: anthropic.Anthropic, model: str) -> None:
    """A tool is called, and its result is answered."""
    asked: Any = {"model": model, "tools": [TRIP], "extra_body": GREEDY}
    one: Any = {"type": "any", "disable_parallel_tool_use": True}
    called = client.messages.create(**asked, max_tokens=1000, messages=HELLO, tool_choice=one)
    assert called.stop_reason == "tool_use"
    (call,) = [block for block in called.content if block.type == "tool_use"]
    assert call.input["city"] in ("Oslo", "Rome")
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny"}
    turns = [*HELLO, called.to_param(), {"role": "user", "content": [result]}]
    assert client.messages.create(**asked, max_tokens=8, messages=turns).usage.output_tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
