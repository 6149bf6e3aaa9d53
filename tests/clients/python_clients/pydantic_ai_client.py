"""pydantic-ai over chats and over Responses. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, ModelSettings, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Trip(BaseModel):
    """A journey."""

    city: Literal["Oslo", "Rome"]


async def ask(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    provider = OpenAIProvider(base_url=url, api_key="none")
    for model in models:
        for kind in (OpenAIChatModel, OpenAIResponsesModel):
            chosen = kind(model, provider=provider)
            agent = Agent(
                chosen,
                instructions="Be brief.",
                model_settings=ModelSettings(max_tokens=8, parallel_tool_calls=True),
            )
            first = await agent.run("Hello")
            assert first.output
            assert (await agent.run("More", message_history=first.all_messages())).output
            async with agent.run_stream("Hello") as stream:
                assert "".join([text async for text in stream.stream_text(delta=True)])
            settings = ModelSettings(max_tokens=3000, temperature=0)
            for output in (Trip, NativeOutput(Trip)):  # by a tool, and by a schema
                shaped = Agent(chosen, output_type=output, model_settings=settings)
                assert isinstance((await shaped.run("Where to?")).output, Trip)
    assert models[0] in [each.id async for each in provider.client.models.list()]


if __name__ == "__main__":
    asyncio.run(ask(*sys.argv[1:]))
