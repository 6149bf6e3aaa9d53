"""LangChain for Anthropic: a message, a stream. Arguments: the base URL and a model."""

from __future__ import annotations

import sys

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, SystemMessage
from pydantic import SecretStr


def main(url: str, model: str) -> None:
    """Ask the server at ``url``."""
    chat = ChatAnthropic(
        base_url=url.removesuffix("/v1"),
        api_key=SecretStr("none"),
        model_name=model,
        max_tokens_to_sample=8,
        max_retries=0,
        timeout=None,
        stop=None,
    )
    history = [SystemMessage("Be brief."), HumanMessage("Hello")]
    answer = chat.invoke(history)
    assert answer.content
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"]
    assert chat.invoke([*history, answer, HumanMessage("More")]).content
    assert "".join(str(chunk.text) for chunk in chat.stream(history))


if __name__ == "__main__":
    main(*sys.argv[1:])
