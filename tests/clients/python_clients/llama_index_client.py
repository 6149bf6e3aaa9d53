"""LlamaIndex: chats, streams, texts, an object. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import sys
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI
from pydantic import BaseModel


class Trip(BaseModel):
    """A journey."""

    city: Literal["Oslo", "Rome"]


def main(url: str, *models: str) -> None:
    """Ask the server at ``url``. LlamaIndex lists no models: it is given the official client's list."""
    assert models[0] in [each.id for each in OpenAI(base_url=url, api_key="none").models.list()]
    for model in models:
        server = {"model": model, "api_base": url, "api_key": "none"}
        llm = OpenAILike(**server, is_chat_model=True, max_tokens=8)
        messages = [
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="user", content="Hello"),
        ]
        assert llm.chat(messages).message.content
        assert "".join(chunk.delta or "" for chunk in llm.stream_chat(messages))
        text = OpenAILike(**server, is_chat_model=False, max_tokens=8)
        assert text.complete("Once").text
        able = OpenAILike(**server, is_chat_model=True, is_function_calling_model=True, max_tokens=3000,
                          temperature=0, should_use_structured_outputs=True)  # fmt: skip
        assert isinstance(able.as_structured_llm(Trip).chat(messages).raw, Trip)


if __name__ == "__main__":
    main(*sys.argv[1:])
