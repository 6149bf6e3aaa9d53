"""LangChain: a chat, a stream, the models. Arguments: the base URL and a model."""

from __future__ import annotations

import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr


def main(url: str, model: str) -> None:
    """Ask the server at ``url``."""
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
    assert model in [each.id for each in chat.root_client.models.list()]


if __name__ == "__main__":
    main(*sys.argv[1:])
