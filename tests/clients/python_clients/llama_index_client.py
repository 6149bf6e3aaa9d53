"""LlamaIndex: chats, streams, texts. Arguments: the base URL, a model and a mix.

Its tools and objects need a package that it does not install with this model class.
"""

from __future__ import annotations

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI


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


if __name__ == "__main__":
    main(*sys.argv[1:])
