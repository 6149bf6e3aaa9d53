"""pydantic-ai: a chat, a stream, the models. Arguments: the base URL and a model."""

from __future__ import annotations

import asyncio
import sys

from pydantic_ai import Agent, ModelSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


async def ask(url: str, model: str) -> None:
    """Ask the server at ``url``."""
    provider = OpenAIProvider(base_url=url, api_key="none")
    agent = Agent(
        OpenAIChatModel(model, provider=provider),
        instructions="Be brief.",
        model_settings=ModelSettings(max_tokens=8, parallel_tool_calls=True),
    )
    first = await agent.run("Hello")
    assert first.output
    assert (await agent.run("More", message_history=first.all_messages())).output
    async with agent.run_stream("Hello") as stream:
        assert "".join([text async for text in stream.stream_text(delta=True)])
    assert model in [each.id async for each in provider.client.models.list()]


if __name__ == "__main__":
    asyncio.run(ask(*sys.argv[1:]))
