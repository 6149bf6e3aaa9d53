"""The example adapters behave on the server as they did when they were trained, side by side."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

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
