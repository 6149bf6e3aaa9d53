"""The official Python client: chats, streams, tools, schemas, Responses, embeddings, errors, the models.

Arguments: the base URL, a model and a mix.
"""

from __future__ import annotations

import json
import sys
from typing import Literal

from openai import BadRequestError, NotFoundError, OpenAI, pydantic_function_tool
from pydantic import BaseModel


class Trip(BaseModel):
    """A journey."""

    city: Literal["Oslo", "Rome"]
    by_train: bool


def main(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    client = OpenAI(base_url=url, api_key="none")
    for model in models:
        chats(client, model)
        shapes(client, model)
        responses(client, model)
        assert client.embeddings.create(model=model, input=["a", "b"]).data[1].embedding
    assert models[0] in [each.id for each in client.models.list()]
    for kind, body in ((NotFoundError, {"model": "nobody"}), (BadRequestError, {"temperature": 9})):
        try:
            client.chat.completions.create(
                **{"model": models[0], "messages": [{"role": "user", "content": "Hi"}], **body}
            )
            raised = None
        except kind as error:
            raised = error
        assert raised is not None
        assert raised.code or raised.param


def chats(client: OpenAI, model: str) -> None:
    """A chat, whole and streamed."""
    asked = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_completion_tokens": 8}
    answer = client.chat.completions.create(**asked, metadata={"a": "b"}, store=True, service_tier="auto")
    assert answer.choices[0].message.content
    assert answer.choices[0].message.annotations == []
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].usage is not None


def shapes(client: OpenAI, model: str) -> None:
    """A schema and a tool, whole and streamed."""
    asked = {"model": model, "messages": [{"role": "user", "content": "Where to?"}], "temperature": 0,
             "max_tokens": 3000}  # fmt: skip
    parsed = client.chat.completions.parse(**asked, response_format=Trip).choices[0].message.parsed
    assert isinstance(parsed, Trip)
    tools = [pydantic_function_tool(Trip)]
    called = client.chat.completions.parse(**asked, tools=tools, tool_choice="required").choices[0]
    assert called.finish_reason == "tool_calls"
    assert isinstance(called.message.tool_calls[0].function.parsed_arguments, Trip)
    with client.chat.completions.stream(**asked, tools=tools, tool_choice="required") as stream:
        final = stream.get_final_completion().choices[0].message
    assert final.tool_calls[0].function.arguments == called.message.tool_calls[0].function.arguments
    history = [
        *asked["messages"],
        called.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})
        | {"tool_calls": [{"id": "call_1", "type": "function",
                           "function": {"name": "Trip", "arguments": '{"city": "Oslo", "by_train": true}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Booked"},
    ]  # fmt: skip
    again = client.chat.completions.create(**{**asked, "messages": history, "max_tokens": 8}, tools=tools)
    assert again.usage.prompt_tokens > 0


def responses(client: OpenAI, model: str) -> None:
    """The Responses API: parsed, streamed, gone on from."""
    first = client.responses.parse(
        model=model, input="Where to?", text_format=Trip, max_output_tokens=3000, temperature=0
    )
    assert isinstance(first.output_parsed, Trip)
    with client.responses.stream(
        model=model, input="More", previous_response_id=first.id, max_output_tokens=8
    ) as stream:
        events = list(stream)
    assert events[0].type == "response.created"
    assert events[-1].response.status in ("completed", "incomplete")
    assert events[-1].response.output_text
    assert json.loads(client.responses.retrieve(first.id).output_text) == json.loads(first.output_text)


if __name__ == "__main__":
    main(*sys.argv[1:])
