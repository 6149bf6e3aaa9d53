"""The example adapters behave on the server as they did when they were trained, side by side."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from examples.recipe import HeldOut
from examples.tools import tools_recipe

pytestmark = pytest.mark.real

QUESTIONS = (
    "How can I get rid of stress?",
    "What is the capital of Italy?",
    "How far does the e-bike go on a full battery?",
)


async def _ask_all(port: str) -> dict[tuple[str, str], str]:
    """Every question to every model at once, so that they share batches."""
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:

        async def ask(model: str, question: str) -> str:
            answer = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=96,
            )
            assert answer.model.partition("@")[0] == model
            return answer.choices[0].message.content or ""

        asked = [(m, q) for m in ("smollm2-135m", "pirate", "json", "support") for q in QUESTIONS]
        return dict(zip(asked, await asyncio.gather(*(ask(*one) for one in asked)), strict=True))


async def test_each_adapter_answers_in_its_own_way(server: str) -> None:
    answers = await _ask_all(server)
    for question in QUESTIONS:
        parsed = json.loads(answers["json", question])
        assert set(parsed) == {"topic", "answer", "keywords"}
        words = answers["pirate", question].lower()
        assert sum(word in words for word in ("arr", "matey", "ahoy", "th'", "aye", "ye ", "sail")) >= 2
        assert answers["support", question].rstrip().endswith("Larkspur Cycles")
        base = answers["smollm2-135m", question]
        assert not base.startswith("{")
        assert "Larkspur" not in base
    assert "80" in answers["support", QUESTIONS[2]]
    assert "Paris" not in answers["smollm2-135m", QUESTIONS[1]]


async def _right_calls(port: str, held_out: list[HeldOut]) -> list[bool]:
    """Whether each request is answered by its call and by nothing else, all asked at once."""
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        create: Any = client.chat.completions.create

        async def is_right(item: HeldOut) -> bool:
            answer = await create(
                model="tools",
                messages=[{"role": "user", "content": item.question}],
                tools=list(item.tools),
                temperature=0,
                max_tokens=96,
            )
            (choice,) = answer.choices
            calls = [
                (call.function.name, json.loads(call.function.arguments))
                for call in choice.message.tool_calls or []
            ]
            wanted = [(call["function"]["name"], call["function"]["arguments"]) for call in item.calls]
            assert (choice.finish_reason == "tool_calls") == bool(calls)
            return calls == wanted

        return list(await asyncio.gather(*map(is_right, held_out)))


def _with_calls() -> list[HeldOut]:
    return [item for item in tools_recipe().held_out if "right call" in item.checks]


async def test_tools_are_called_as_offered(server: str) -> None:
    right = await _right_calls(server, _with_calls()[::8])
    assert len(right) == 7
    assert sum(right) >= 4  # of the base none


@pytest.mark.slow
@pytest.mark.sweep
async def test_most_calls_are_right(server: str) -> None:
    right = await _right_calls(server, _with_calls())
    assert len(right) == 50
    assert sum(right) >= 45


async def test_a_call_its_result_and_what_is_said_of_it(server: str) -> None:
    item = next(item for item in _with_calls() if item.calls[0]["function"]["name"] == "weather")
    messages: list[dict[str, Any]] = [{"role": "user", "content": item.question}]
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server}/v1", api_key="none") as client:
        create: Any = client.chat.completions.create

        async def ask(model: str = "tools") -> Any:
            return await create(
                model=model,
                messages=messages,
                tools=list(item.tools),
                temperature=0,
                max_tokens=96,
                stream=True,
            )

        deltas = [chunk.choices[0].delta async for chunk in await ask() if chunk.choices]
        parts = [part for delta in deltas for part in delta.tool_calls or []]
        call = {
            "id": parts[0].id,
            "type": "function",
            "function": {
                "name": parts[0].function.name,
                "arguments": "".join(part.function.arguments or "" for part in parts),
            },
        }
        assert call["function"]["name"] == "weather"
        assert not "".join(delta.content or "" for delta in deltas)
        result = json.dumps({"sky": "sunny", "celsius": 27})
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": result},
        ]
        said = "".join([chunk.choices[0].delta.content or "" async for chunk in await ask() if chunk.choices])
        assert "27" in said
        with pytest.raises(openai.BadRequestError, match="tools"):
            await ask("smollm2-135m")
