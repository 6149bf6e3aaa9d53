"""LangChain for Anthropic: messages, streams, a tool. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import sys
from typing import Any, Literal

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool


@tool
def trip(city: Literal["Oslo", "Rome"]) -> str:
    """Travel to a city."""
    return city


def main(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    server = {"base_url": url.removesuffix("/v1"), "api_key": "none", "max_retries": 0}
    for model in models:
        asked: Any = {**server, "model": model}
        chat = ChatAnthropic(**asked, max_tokens=8)
        history = [SystemMessage("Be brief."), HumanMessage("Hello")]
        answer = chat.invoke(history)
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"]
        assert chat.invoke([*history, answer, HumanMessage("More")]).response_metadata["stop_reason"]
        assert list(chat.stream(history))
        bound = ChatAnthropic(**asked, max_tokens=1000).bind_tools([trip], tool_choice="trip", strict=True)
        assert bound.invoke(history).tool_calls[0]["name"] == "trip"


if __name__ == "__main__":
    main(*sys.argv[1:])
