"""The completions endpoint's own features: many prompts, token ids, echo."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.running_server import Running


def _body(**fields: Any) -> dict[str, Any]:
    return {"model": "alpha", "max_tokens": 4, "temperature": 0, "ignore_eos": True, **fields}


def _complete(server: Running, **fields: Any) -> dict[str, Any]:
    with server.http() as http:
        answer = http.post("/v1/completions", json=_body(**fields))
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def _streamed(server: Running, **fields: Any) -> dict[int, dict[str, Any]]:
    """The choices of a streamed answer, joined."""
    joined: dict[int, dict[str, Any]] = {}
    with (
        server.http() as http,
        http.stream("POST", "/v1/completions", json=_body(stream=True, **fields)) as r,
    ):
        lines = [line.removeprefix("data: ") for line in r.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        for part in json.loads(line)["choices"]:
            choice = joined.setdefault(part["index"], {"text": "", "logprobs": None, "finish_reason": None})
            choice["text"] += part["text"]
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
            if part["logprobs"] is not None:
                whole = choice["logprobs"] or {key: [] for key in part["logprobs"]}
                choice["logprobs"] = {key: whole[key] + part["logprobs"][key] for key in whole}
    return joined


def _comparable(choices: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {c["index"]: {key: c[key] for key in ("text", "logprobs", "finish_reason")} for c in choices}


def _ids(server: Running, text: str) -> list[int]:
    with server.http() as http:
        ids: list[int] = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    return ids


def test_token_ids_are_the_text_they_stand_for(server: Running) -> None:
    ids = _ids(server, "Hello")
    text = _complete(server, prompt="Hello")["choices"][0]["text"]
    assert _complete(server, prompt=ids)["choices"][0]["text"] == text
    assert _complete(server, prompt=[ids])["choices"][0]["text"] == text


def test_many_prompts_in_order(server: Running) -> None:
    prompts = ["one", "two", "three"]
    alone = [_complete(server, prompt=prompt)["choices"][0]["text"] for prompt in prompts]
    answer = _complete(server, prompt=prompts, n=2)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [choice["text"] for choice in answer["choices"]] == [text for text in alone for _ in range(2)]
    assert answer["usage"]["prompt_tokens"] == len("onetwothree")
    assert answer["usage"]["completion_tokens"] == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "Hello"},
        {"prompt": ["one", "two"], "n": 2},
        {"prompt": "Hello", "echo": True},
        {"prompt": ["one", "two"], "echo": True, "logprobs": 2},
        {"prompt": "Hello", "echo": True, "logprobs": 2, "max_tokens": 0},
        {"prompt": "Hello", "logprobs": 0},
    ],
    ids=str,
)
def test_streamed_and_whole_answers_agree(server: Running, fields: dict[str, Any]) -> None:
    whole = _comparable(_complete(server, **fields)["choices"])
    streamed = _streamed(server, **fields)
    for index, choice in whole.items():
        assert streamed[index]["text"] == choice["text"]
        assert streamed[index]["finish_reason"] == choice["finish_reason"] == "length"
        if choice["logprobs"] is None:
            assert streamed[index]["logprobs"] is None
            continue
        for key in ("tokens", "text_offset"):
            assert streamed[index]["logprobs"][key] == choice["logprobs"][key]
        assert streamed[index]["logprobs"]["token_logprobs"] == pytest.approx(
            choice["logprobs"]["token_logprobs"], abs=1e-4, nan_ok=True
        )


def test_echo(server: Running) -> None:
    plain = _complete(server, prompt="Hello")["choices"][0]["text"]
    assert _complete(server, prompt="Hello", echo=True)["choices"][0]["text"] == "Hello" + plain
    assert _complete(server, prompt=_ids(server, "Hi"), echo=True)["choices"][0]["text"].startswith("Hi")


def test_echo_alone_scores_the_prompt(server: Running) -> None:
    answer = _complete(server, prompt="Hällo", echo=True, logprobs=1, max_tokens=0)
    (choice,) = answer["choices"]
    assert choice["text"] == "Hällo"
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == 6  # one a byte
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value < 0 for value in logprobs["token_logprobs"][1:])
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3, 4]


def test_echo_alone_may_fill_the_context(server: Running) -> None:
    answer = _complete(server, prompt="x" * 2048, echo=True, max_tokens=0)
    assert answer["usage"]["prompt_tokens"] == 2048


def test_scores_of_prompt_and_answer_are_one_scale(server: Running) -> None:
    """A token has the same log-probability drawn (here: forced) as when it is part of the prompt."""
    drawn = _complete(server, prompt="Hello", logprobs=0, logit_bias={"65": 100})["choices"][0]
    ids = [*_ids(server, "Hello"), *[65] * 4]
    scored = _complete(server, prompt=ids, echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert scored["logprobs"]["tokens"][-4:] == drawn["logprobs"]["tokens"] == ["b"] * 4
    assert scored["logprobs"]["token_logprobs"][-4:] == pytest.approx(
        drawn["logprobs"]["token_logprobs"], abs=1e-3
    )
