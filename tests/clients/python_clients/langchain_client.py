"""LangChain: chats, streams, a tool, an object, vectors. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import sys
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr


class Trip(BaseModel):
    """A journey."""

    city: Literal["Oslo", "Rome"]
    by_train: bool


def main(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    for model in models:
        chat = ChatOpenAI(base_url=url, api_key=SecretStr("none"), model=model, max_completion_tokens=8)
        history = [
            SystemMessage("Be brief."),
            HumanMessage("Hello", name="ann", id="m1"),
            AIMessage("Hi"),
            HumanMessage("And now?"),
        ]
        answer = chat.invoke(history)
        assert answer.content
        assert answer.usage_metadata is not None
        assert chat.invoke([*history, answer, HumanMessage("More")]).content
        assert "".join(str(chunk.content) for chunk in chat.stream(history))
        shapes(url, model, history)
        vectors = OpenAIEmbeddings(
            base_url=url, api_key=SecretStr("none"), model=model, check_embedding_ctx_length=False
        )
        assert len(vectors.embed_documents(["a", "b"])) == 2
    assert models[0] in [each.id for each in chat.root_client.models.list()]


def shapes(url: str, model: str, history: list) -> None:
    """A tool and a schema."""
    chat = ChatOpenAI(
        base_url=url, api_key=SecretStr("none"), model=model, max_completion_tokens=3000, temperature=0
    )
    called = chat.bind_tools([Trip], tool_choice="any", strict=True).invoke(history)
    (call,) = called.tool_calls[:1]
    assert call["args"]["city"] in ("Oslo", "Rome")
    results = [ToolMessage("Booked", tool_call_id=each["id"]) for each in called.tool_calls]
    assert chat.bind_tools([Trip]).invoke([*history, called, *results]).response_metadata
    for method in ("json_schema", "function_calling"):
        shaped = chat.with_structured_output(Trip, method=method, strict=True)
        assert isinstance(shaped.invoke(history), Trip)


if __name__ == "__main__":
    main(*sys.argv[1:])
