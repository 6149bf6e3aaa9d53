"""The official client against a real server: what it sends is understood, what it gets back it accepts."""

from __future__ import annotations

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.running_server import Running

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
]


def test_chat(server: Running) -> None:
    answer = server.client().chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=12, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_stream_adds_up_to_the_whole_answer(server: Running) -> None:
    client = server.client()
    whole = client.chat.completions.create(
        model="alpha", messages=MESSAGES, max_tokens=24, temperature=0, n=2, seed=1
    )
    stream = client.chat.completions.create(
        model="alpha",
        messages=MESSAGES,
        max_tokens=24,
        temperature=0,
        n=2,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    for index in range(2):
        parts = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert parts[0].delta.role == "assistant"
        assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1].finish_reason == whole.choices[index].finish_reason
        text = "".join(part.delta.content or "" for part in parts)
        assert text == whole.choices[index].message.content


async def test_async_client(server: Running) -> None:
    async with server.async_client() as client:
        whole = await client.chat.completions.create(
            model="beta", messages=MESSAGES, max_tokens=8, temperature=0
        )
        stream = await client.chat.completions.create(
            model="beta", messages=MESSAGES, max_tokens=8, temperature=0, stream=True
        )
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == whole.choices[0].message.content


def test_stream_helper(server: Running) -> None:
    with server.client().chat.completions.stream(
        model="tiny", messages=MESSAGES, max_completion_tokens=8, temperature=0, logprobs=True, top_logprobs=2
    ) as stream:
        stream.until_done()
        answer = stream.current_completion_snapshot
    assert answer.choices[0].message.content
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert all(len(token.top_logprobs) == 2 for token in logprobs.content)


def test_raw_response_has_headers(server: Running) -> None:
    raw = server.client().chat.completions.with_raw_response.create(
        model="alpha", messages=MESSAGES, max_tokens=2, extra_headers={"x-request-id": "my-id.1"}
    )
    assert raw.status_code == 200
    assert raw.headers["x-request-id"] == "my-id.1"
    assert raw.headers["x-manylora-model"].startswith("alpha@")
    assert raw.parse().model == raw.headers["x-manylora-model"]
    odd = server.client().chat.completions.with_raw_response.create(
        model="tiny", messages=MESSAGES, max_tokens=2, extra_headers={"x-request-id": "a b\tc"}
    )
    assert odd.headers["x-request-id"].startswith("req-")


def test_completions(server: Running) -> None:
    client = server.client()
    whole = client.completions.create(model="gamma", prompt="Once", temperature=0)
    assert whole.id.startswith("cmpl-")
    assert whole.object == "text_completion"
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 16
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(model="gamma", prompt="Once", temperature=0, stream=True)
    )
    assert text == whole.choices[0].text


def test_models(server: Running) -> None:
    client = server.client()
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny", "alpha", "beta", "gamma"]
    base, alpha = models[0].to_dict(), client.models.retrieve("alpha").to_dict()
    assert base["parent"] is None
    assert base["max_model_len"] == 2048
    assert alpha["parent"] == "tiny"
    assert str(alpha["root"]).endswith("/alpha")
    assert alpha["rank"] == 4
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/knows")


def test_error_classes(server: Running) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=MESSAGES, stream=True)
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=5)
    assert bad.value.param == "temperature"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.ConflictError):
        client.post("/load_lora_adapter", body={"lora_name": "alpha", "lora_path": "beta"}, cast_to=str)
    with pytest.raises(openai.PermissionDeniedError):
        client.post("/load_lora_adapter", body={"lora_name": "x", "lora_path": "/etc"}, cast_to=str)
    with pytest.raises(openai.UnprocessableEntityError):
        client.post("/load_lora_adapter", body={"lora_name": "x", "lora_path": "none"}, cast_to=str)
