"""The OpenAI Agents SDK: a tool, an object, a stream, over chats and over Responses.

Arguments: the base URL, a model and a mix.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
called: list[str] = []


@function_tool
def weather(city: Literal["Oslo", "Rome"]) -> str:
    """The weather in a city."""
    called.append(city)
    return "Rain"


class Answer(BaseModel):
    """What the agent says at its end."""

    wet: bool


async def ask(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    client = AsyncOpenAI(base_url=url, api_key="none")
    for model in models:
        for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
            chosen = kind(model=model, openai_client=client)
            settings = ModelSettings(max_tokens=3000, temperature=0, tool_choice="required")
            agent = Agent(name="forecast", instructions="Be brief.", model=chosen, model_settings=settings,
                          tools=[weather], tool_use_behavior="stop_on_first_tool")  # fmt: skip
            called.clear()
            first = await Runner.run(agent, "Is it wet?", max_turns=1)
            assert called, kind
            assert first.final_output
            shaped = Agent(name="yes or no", model=chosen, output_type=Answer,
                           model_settings=ModelSettings(max_tokens=3000, temperature=0))  # fmt: skip
            assert isinstance((await Runner.run(shaped, first.to_input_list())).final_output, Answer)
            streamed = Runner.run_streamed(shaped, "Is it wet?")
            assert [event async for event in streamed.stream_events()]
            assert isinstance(streamed.final_output, Answer)


if __name__ == "__main__":
    asyncio.run(ask(*sys.argv[1:]))
