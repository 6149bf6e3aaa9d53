"""Bad fields: each with its status, ``param`` and message; afterwards the server answers as before."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.refused_requests import CHAT, MESSAGES, TEXT, check_alive, checked_error, valid_request
from tests.support.running_server import Running

TEXT_PART = {"type": "text", "text": MESSAGES[0]["content"]}
CALLING: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}

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
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].tool_call_id", "required"),
    (CHAT, {"messages": [{"role": "function", "content": "x"}]}, 400, "messages[0].role", "'user'"),
    (CHAT, {"messages": [{"content": "x"}]}, 400, "messages[0].role", "required"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content", "required"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", "text parts"),
    (CHAT, {"messages": [{"role": "user", "content": []}]}, 400, "messages[0].content", "at least 1"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages[0].content[0].type",
        "'image_url' is not supported by this server: parts are text",
    ),
    (CHAT, {"messages": [{**MESSAGES[0], "tool_calls": [{}]}]}, 400, "messages[0].tool_calls", "supported"),
    (CHAT, {"messages": [{**MESSAGES[0], "mood": "sad"}]}, 400, "messages[0].mood", "Unrecognized"),
    (CHAT, {"messages": [{**MESSAGES[0], "name": "x" * 600}]}, 400, "messages[0].name", "at most"),
    (CHAT, {"messages": [{**MESSAGES[0], "name": 5}]}, 400, "messages[0].name", "string"),
    (CHAT, {"messages": [{**MESSAGES[0], "tool_call_id": "c"}]}, 400, "messages[0].tool_call_id", "'tool'"),
    (CHAT, {"messages": [{"role": "assistant", "content": None}]}, 400, "messages[0].content", "text parts"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": []}]}, 400, "messages[0].content", "required"),
    (CHAT, {"messages": [CALLING]}, 400, "messages[0].tool_calls", "no place for tool calls"),
    (
        CHAT,
        {"messages": [{**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        400,
        "messages[0].tool_calls[0].function.arguments",
        "JSON object",
    ),
    (
        CHAT,
        {"messages": [{**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]},
        400,
        "messages[0].tool_calls[0].function.arguments",
        "dictionary",
    ),
    (
        CHAT,
        {"messages": [{**CALLING, "tool_calls": [{"type": "custom", "function": {"name": "f"}}]}]},
        400,
        "messages[0].tool_calls[0].type",
        "'function'",
    ),
    (CHAT, {"messages": [{**CALLING, "tool_calls": "f"}]}, 400, "messages[0].tool_calls", "list"),
    (CHAT, {"messages": [{**CALLING, "tool_calls": [5]}]}, 400, "messages[0].tool_calls[0]", "object"),
    (
        CHAT,
        {"messages": [{**CALLING, "tool_calls": CALLING["tool_calls"] * 129}]},
        400,
        "messages[0].tool_calls",
        "at most 128",
    ),
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
    (CHAT, {"top_p": -0.1}, 400, "top_p", "greater"),
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
    (CHAT, {"stop": [str(i) for i in range(17)]}, 400, "stop", "at most 16"),
    (CHAT, {"stop": ["a"] * 500_000}, 400, "stop", "at most 16"),
    (CHAT, {"stop": [""] * 500_000}, 400, "stop", "at most 16"),
    (CHAT, {"stop": ["a", None]}, 400, "stop[1]", "string"),
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
    (CHAT, {"stream_options": {"include_usage": 1}}, 400, "stream_options.include_usage", "boolean"),
    (CHAT, {"stream_options": 5}, 400, "stream_options", "object"),
    (CHAT, {"best_of": 2}, 400, "best_of", "equals 'n'"),
    (CHAT, {"prompt_logprobs": 21}, 400, "prompt_logprobs", "20"),
    (CHAT, {"prompt_logprobs": -1}, 400, "prompt_logprobs", "greater"),
    (CHAT, {"prompt_logprobs": 1, "stream": True}, 400, "prompt_logprobs", "stream"),
    (CHAT, {"return_token_ids": "yes"}, 400, "return_token_ids", "boolean"),
    (CHAT, {"request_id": "a b"}, 400, "request_id", "pattern"),
    (CHAT, {"request_id": "a\n"}, 400, "request_id", "pattern"),
    (CHAT, {"request_id": ""}, 400, "request_id", "at least 1"),
    (CHAT, {"request_id": "x" * 101}, 400, "request_id", "at most"),
    (CHAT, {"reasoning_effort": "huge"}, 400, "reasoning_effort", "'high'"),
    (CHAT, {"verbosity": 3}, 400, "verbosity", "'high'"),
    (
        CHAT,
        {"continue_final_message": True, "add_generation_prompt": True},
        400,
        "continue_final_message",
        "begins another",
    ),
    (
        CHAT,
        {"continue_final_message": True, "messages": [{"role": "assistant", "content": ""}]},
        400,
        "messages[0].content",
        "text to go on with",
    ),
    (CHAT, {"chat_template_kwargs": 5}, 400, "chat_template_kwargs", "object"),
    (CHAT, {"chat_template_kwargs": {"a": [1]}}, 400, "chat_template_kwargs.a", "number"),
    (CHAT, {"chat_template_kwargs": {"a": "<|im_end|>"}}, 400, "chat_template_kwargs.a", "word"),
    (CHAT, {"chat_template_kwargs": {"a": "x" * 65}}, 400, "chat_template_kwargs.a", "short"),
    (CHAT, {"chat_template_kwargs": {"A b": 1}}, 400, "chat_template_kwargs.A b", "name"),
    (CHAT, {"chat_template_kwargs": {"messages": 1}}, 400, "chat_template_kwargs.messages", "not supported"),
    (CHAT, {"chat_template_kwargs": {"eos_token": "x"}}, 400, "chat_template_kwargs.eos_token", "not supp"),
    (
        CHAT,
        {"chat_template_kwargs": {f"a{i}": 1 for i in range(17)}},
        400,
        "chat_template_kwargs",
        "at most 16",
    ),
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
    (CHAT, "reasoning_effort", "high"),
    (CHAT, "thinking_token_budget", 5),
    (CHAT, "functions", [{"name": "f"}]),
    (CHAT, "function_call", {"name": "f"}),
    (CHAT, "audio", {"voice": "alloy", "format": "mp3"}),
    (CHAT, "modalities", ["text", "audio"]),
    (CHAT, "prediction", {"type": "content", "content": "x"}),
    (CHAT, "web_search_options", {}),
    (CHAT, "chat_template", "{{ messages }}"),
    (CHAT, "echo", True),
    (CHAT, "use_beam_search", True),
    (TEXT, "use_beam_search", True),
    (TEXT, "prompt_embeds", "x"),
]


FIELDS_OF_CLIENTS: list[dict[str, Any]] = [
    {"metadata": {"a": "b"}},
    {"store": True},
    {"prompt_cache_key": "x", "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}},
    {"safety_identifier": "x"},
    {"service_tier": "flex"},
    {"verbosity": "low"},
    {"reasoning_effort": "none"},
    {"parallel_tool_calls": True},
    {"tool_choice": "auto", "tools": []},
    {"function_call": "auto", "functions": []},
    {"chat_template_kwargs": {"enable_thinking": False, "a": 1}},
    {"stream_options": {"include_usage": True}},
    {"logprobs": False, "top_logprobs": 0},
    {"top_logprobs": 0},
    {"top_p": 0, "temperature": 1.5},
    {"stop": ""},
    {"stop": []},
    {"stop": ["", "\u2603", ""]},
    {"stop": [chr(0x2603 + i) for i in range(16)]},
    {"n": 1, "best_of": 1},
    {"logit_bias": {}},
    {"modalities": ["text"]},
    {"response_format": {"type": "text"}},
    {"prompt_logprobs": None},
    {"continue_final_message": False},
    {"return_token_ids": False},
    {"request_id": "my-own.id:1"},
    {"priority": 5},
    {"cache_prompt": False, "id_slot": 3},
    {"keep_alive": "5m"},
    {"messages": [{**MESSAGES[0], "name": "Bob", "id": "m1"}]},
    {"messages": [{"role": "user", "content": [{**TEXT_PART, "cache_control": {"type": "ephemeral"}}]}]},
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS_OF_CLIENTS, ids=str)
def test_fields_that_clients_add_change_no_answer(server: Running, field: dict[str, Any]) -> None:
    plain = valid_request(CHAT, {"temperature": 0, "max_tokens": 8})
    with server.http() as http:
        expected = http.post(CHAT, json=plain).json()["choices"]
        answer = http.post(CHAT, json={**plain, **field})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == expected


def test_all_faults_are_named_at_once(server: Running) -> None:
    with server.http() as http:
        answer = http.post(CHAT, json=valid_request(CHAT, {"temperature": 9, "top_p": 9, "n": 99}))
    message = checked_error(answer.json())["message"]
    assert all(name in message for name in ("temperature", "top_p", "n:"))
