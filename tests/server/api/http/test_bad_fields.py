"""Bad fields: each with its status, ``param`` and message; afterwards the server answers as before."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.refused_requests import CHAT, MESSAGES, TEXT, check_alive, checked_error, valid_request
from tests.support.running_server import Running

# endpoint, fields over a valid request, status, param, a piece of the message
Case = tuple[str, dict[str, Any], int, str | None, str]
FIELDS: list[Case] = [
    (CHAT, {"model": "nobody"}, 404, "model", "nobody"),
    (CHAT, {"model": "meta/unknown"}, 404, "model", "meta/unknown"),
    (CHAT, {"model": "alpha*0.5+nobody*0.5"}, 404, "model", "nobody"),
    (CHAT, {"model": "alpha@00000000"}, 404, "model", "revision"),
    (CHAT, {"model": "alpha@merged"}, 404, "model", "no merged copy"),
    (CHAT, {"model": "alpha*"}, 400, "model", "weight"),
    (CHAT, {"model": "alpha*nan"}, 400, "model", "weight"),
    (CHAT, {"model": "alpha*9"}, 400, "model", "between -8 and 8"),
    (CHAT, {"model": "alpha+"}, 400, "model", "entry 2 of 2 is empty"),
    (CHAT, {"model": "+".join(["alpha"] * 9)}, 400, "model", "at most 8"),
    (CHAT, {"model": ""}, 400, "model", "at least 1"),
    (CHAT, {"model": "x" * 3000}, 400, "model", "at most"),
    (CHAT, {"model": None}, 400, "model", "string"),
    (CHAT, {"model": 5}, 400, "model", "string"),
    (CHAT, {"adapters": [{"name": "nobody"}]}, 404, "adapters[0].name", "nobody"),
    (CHAT, {"adapters": [{"name": "alpha", "weight": 8.5}]}, 400, "adapters[0].weight", "between -8 and 8"),
    (CHAT, {"adapters": [{"name": "beta"}, {"name": "alpha*2"}]}, 400, "adapters[1].name", "weight"),
    (CHAT, {"adapters": [{"name": "alpha"}] * 9}, 400, "adapters", "at most 8"),
    (CHAT, {"adapters": [{"weight": 1}]}, 400, "adapters[0].name", "required"),
    (CHAT, {"adapters": [{"name": "beta"}], "model": "alpha"}, 400, "adapters", "base model"),
    (CHAT, {"messages": []}, 400, "messages", "at least 1"),
    (CHAT, {"messages": "Hello"}, 400, "messages", "list"),
    (CHAT, {"messages": ["Hello"]}, 400, "messages[0]", "object"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role", "'user'"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "'user'"),
    (CHAT, {"messages": [{"content": "x"}]}, 400, "messages[0].role", "required"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content", "required"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", "text parts"),
    (CHAT, {"messages": [{"role": "user", "content": []}]}, 400, "messages[0].content", "at least 1"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages[0].content[0].type",
        "'text'",
    ),
    (CHAT, {"messages": [{**MESSAGES[0], "tool_calls": [{}]}]}, 400, "messages[0].tool_calls", "supported"),
    (CHAT, {"messages": [{**MESSAGES[0], "mood": "sad"}]}, 400, "messages[0].mood", "Unrecognized"),
    (CHAT, {"messages": [{**MESSAGES[0], "name": "Bob"}]}, 400, "messages[0].name", "template"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 3000}]}, 400, "messages", "2048 tokens"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 200_000}]}, 400, "messages", "characters"),
    (CHAT, {"max_tokens": 2048}, 400, "max_tokens", "2048 tokens"),
    (CHAT, {"max_completion_tokens": 10**6}, 400, "max_completion_tokens", "2048 tokens"),
    (CHAT, {"max_tokens": 0}, 400, "max_tokens", "at least 1"),
    (CHAT, {"max_tokens": -1}, 400, "max_tokens", "greater"),
    (CHAT, {"max_tokens": 10**30}, 400, "max_tokens", "max_tokens"),
    (CHAT, {"max_tokens": 1.5}, 400, "max_tokens", "integer"),
    (CHAT, {"max_tokens": True}, 400, "max_tokens", "integer"),
    (CHAT, {"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_tokens", "differ"),
    (CHAT, {"max_tokens": 5, "min_tokens": 6}, 400, "min_tokens", "exceeds"),
    (CHAT, {"temperature": -0.1}, 400, "temperature", "greater"),
    (CHAT, {"temperature": 2.1}, 400, "temperature", "less"),
    (CHAT, {"temperature": "hot"}, 400, "temperature", "number"),
    (CHAT, {"temperature": True}, 400, "temperature", "number"),
    (CHAT, {"top_p": 0}, 400, "top_p", "greater"),
    (CHAT, {"top_p": 1.01}, 400, "top_p", "less"),
    (CHAT, {"top_k": -2}, 400, "top_k", "greater"),
    (CHAT, {"min_p": 1.1}, 400, "min_p", "less"),
    (CHAT, {"presence_penalty": 2.1}, 400, "presence_penalty", "less"),
    (CHAT, {"frequency_penalty": -2.1}, 400, "frequency_penalty", "greater"),
    (CHAT, {"repetition_penalty": 0}, 400, "repetition_penalty", "greater"),
    (CHAT, {"logit_bias": {"5": 101}}, 400, "logit_bias.5", "less"),
    (CHAT, {"logit_bias": {"100000": 1}}, 400, "logit_bias", "100000"),
    (CHAT, {"logit_bias": {"-1": 1}}, 400, "logit_bias", "-1"),
    (CHAT, {"logit_bias": {"a": 1}}, 400, "logit_bias", "'a'"),
    (CHAT, {"logit_bias": {str(i): 1 for i in range(301)}}, 400, "logit_bias", "at most 300"),
    (CHAT, {"seed": 2**63}, 400, "seed", "less"),
    (CHAT, {"seed": "1"}, 400, "seed", "integer"),
    (CHAT, {"stop": ["a", "b", "c", "d", "e"]}, 400, "stop", "at most 4"),
    (CHAT, {"stop": ["a"] * 500_000}, 400, "stop", "at most 4"),
    (CHAT, {"stop": ""}, 400, "stop[0]", "at least 1"),
    (CHAT, {"stop": 5}, 400, "stop", "string"),
    (CHAT, {"stop": ["x" * 300]}, 400, "stop[0]", "at most"),
    (CHAT, {"stop_token_ids": [100_000]}, 400, "stop_token_ids", "100000"),
    (CHAT, {"stop_token_ids": [-1]}, 400, "stop_token_ids[0]", "greater"),
    (CHAT, {"n": 1000}, 400, "n", "16"),
    (CHAT, {"n": 0}, 400, "n", "greater"),
    (CHAT, {"logprobs": 5}, 400, "logprobs", "boolean"),
    (CHAT, {"top_logprobs": 2}, 400, "top_logprobs", "logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "20"),
    (CHAT, {"stream": "yes"}, 400, "stream", "boolean"),
    (CHAT, {"stream_options": {"include_usage": True}}, 400, "stream_options", "stream"),
    (CHAT, {"stream": True, "stream_options": {"x": 1}}, 400, "stream_options.x", "Unrecognized"),
    (
        CHAT,
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        400,
        "stream_options.include_obfuscation",
        "not supported",
    ),
    (CHAT, {"cache_salt": ""}, 400, "cache_salt", "at least 1"),
    (CHAT, {"user": "x" * 1000}, 400, "user", "at most"),
    (CHAT, {"colour": "blue"}, 400, "colour", "Unrecognized"),
    (TEXT, {"prompt": ""}, 400, "prompt", "empty"),
    (TEXT, {"prompt": []}, 400, "prompt", "empty"),
    (TEXT, {"prompt": [[]]}, 400, "prompt", "only"),
    (TEXT, {"prompt": None}, 400, "prompt", "string"),
    (TEXT, {"prompt": ["a", 5]}, 400, "prompt", "only"),
    (TEXT, {"prompt": [5, -1]}, 400, "prompt", "token ids go from 0"),
    (TEXT, {"prompt": [5, 10**12]}, 400, "prompt", "token ids go from 0"),
    (TEXT, {"prompt": ["a"] * 129}, 400, "prompt", "at most 128"),
    (TEXT, {"prompt": ["a"] * 100, "n": 2}, 400, "n", "at most 128"),
    (TEXT, {"prompt": "x" * 2048}, 400, "prompt", "2048 tokens"),
    (TEXT, {"max_tokens": 2048}, 400, "max_tokens", "2048 tokens"),
    (TEXT, {"max_tokens": 0}, 400, "max_tokens", "echo"),
    (TEXT, {"logprobs": 21}, 400, "logprobs", "20"),
    (TEXT, {"logprobs": True}, 400, "logprobs", "integer"),
    (TEXT, {"best_of": 3}, 400, "best_of", "not supported"),
    (TEXT, {"suffix": "the end"}, 400, "suffix", "not supported"),
    ("/tokenize", {"prompt": "a", "messages": MESSAGES}, 400, "prompt", "either"),
    ("/tokenize", {}, 400, "prompt", "either"),
    ("/tokenize", {"prompt": "a", "model": "nobody"}, 404, "model", "nobody"),
    ("/detokenize", {"tokens": [10**9]}, 400, "tokens", "token ids go from 0"),
    ("/detokenize", {"tokens": "abc"}, 400, "tokens", "list"),
]

UNSUPPORTED: list[tuple[str, str, Any]] = [
    (CHAT, "tools", [{"type": "function", "function": {"name": "f"}}]),
    (CHAT, "tool_choice", "auto"),
    (CHAT, "functions", [{"name": "f"}]),
    (CHAT, "function_call", "auto"),
    (CHAT, "parallel_tool_calls", True),
    (CHAT, "response_format", {"type": "json_object"}),
    (CHAT, "audio", {"voice": "alloy", "format": "mp3"}),
    (CHAT, "modalities", ["text", "audio"]),
    (CHAT, "prediction", {"type": "content", "content": "x"}),
    (CHAT, "reasoning_effort", "high"),
    (CHAT, "verbosity", "low"),
    (CHAT, "web_search_options", {}),
    (CHAT, "store", True),
    (CHAT, "metadata", {"a": "b"}),
    (CHAT, "service_tier", "flex"),
    (CHAT, "prompt_cache_key", "x"),
    (CHAT, "chat_template", "{{ messages }}"),
    (CHAT, "chat_template_kwargs", {"a": 1}),
    (CHAT, "continue_final_message", True),
    (CHAT, "echo", True),
    (CHAT, "guided_json", {}),
    (CHAT, "use_beam_search", True),
    (TEXT, "use_beam_search", True),
    (TEXT, "truncate_prompt_tokens", 5),
    (TEXT, "response_format", {"type": "json_object"}),
]


def _name(value: object) -> str | None:
    return str(value)[:60] if isinstance(value, dict) else None


@pytest.mark.slow
@pytest.mark.parametrize("case", FIELDS, ids=lambda case: str(case[1])[:60])
def test_fields(server: Running, case: Case) -> None:
    endpoint, fields, status, param, text = case
    with server.http() as http:
        answer = http.post(endpoint, json=valid_request(endpoint, fields))
    assert answer.status_code == status, answer.text
    error = checked_error(answer.json())
    assert error["param"] == param
    assert text in error["message"]
    assert len(error["message"]) < 2000
    check_alive(server)


@pytest.mark.parametrize(("endpoint", "name", "value"), UNSUPPORTED, ids=_name)
def test_unsupported_parameters_are_refused_by_name(
    server: Running, endpoint: str, name: str, value: Any
) -> None:
    with server.http() as http:
        answer = http.post(endpoint, json=valid_request(endpoint, {name: value}))
        assert answer.status_code == 400
        error = checked_error(answer.json())
        assert error["param"] == name
        assert error["code"] == "unsupported_parameter"
        assert http.post(endpoint, json=valid_request(endpoint, {name: None})).status_code == 200


def test_parameters_that_ask_for_what_is_done_anyway(server: Running) -> None:
    inert = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "service_tier": "auto",
        "store": False,
        "metadata": {},
        "user": "somebody",
        "safety_identifier": "somebody",
    }
    history: dict[str, Any] = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
    }
    with server.http() as http:
        fields = {**inert, "messages": [*MESSAGES, history, *MESSAGES]}
        answer = http.post(CHAT, json=valid_request(CHAT, fields))
    assert answer.status_code == 200, answer.text


def test_all_faults_are_named_at_once(server: Running) -> None:
    with server.http() as http:
        answer = http.post(CHAT, json=valid_request(CHAT, {"temperature": 9, "top_p": 9, "n": 99}))
    message = checked_error(answer.json())["message"]
    assert all(name in message for name in ("temperature", "top_p", "n:"))
