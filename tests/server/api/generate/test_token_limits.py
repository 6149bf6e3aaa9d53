"""``allowed_token_ids`` and ``bad_words`` over HTTP: on every route that draws, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.refused_requests import CHAT, MESSAGES, TEXT, check_alive, checked_error, valid_request
from tests.support.running_server import Running
from tests.support.served_adapters import compare

ROUTES = (CHAT, TEXT)
A, B, C, END = 64, 65, 66, 258  # of the byte vocabulary
TOWARDS = {str(A): 40, str(B): 40}
SAMPLED = {"temperature": 1.0, "seed": 5, "max_tokens": 24, "model": "alpha"}


def post(server: Running, route: str, fields: dict[str, Any]) -> Any:
    with server.http() as http:
        answer = http.post(route, json=valid_request(route, {**SAMPLED, **fields}))
    assert answer.status_code == 200, answer.text
    return answer.json()


def texts(answer: Any) -> list[str]:
    return [each["message"]["content"] if "message" in each else each["text"] for each in answer["choices"]]


def streamed(server: Running, route: str, fields: dict[str, Any]) -> list[Any]:
    asked = valid_request(route, {**SAMPLED, **fields, "stream": True})
    with server.http() as http:
        lines = http.post(route, json=asked).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize("route", ROUTES)
def test_only_allowed_tokens_are_drawn(server: Running, route: str) -> None:
    fields = {"allowed_token_ids": [A, B, B], "n": 3, "return_token_ids": True}
    answer = post(server, route, fields)
    assert len(set(texts(answer))) > 1
    for choice in answer["choices"]:
        assert set(choice["token_ids"]) == {A, B}
        assert choice["finish_reason"] == "length"
    parts = [choice for chunk in streamed(server, route, fields) for choice in chunk["choices"]]
    for choice in answer["choices"]:
        own = [part for part in parts if part["index"] == choice["index"]]
        assert [token for part in own for token in part["token_ids"]] == choice["token_ids"]
    (text,) = texts(post(server, route, {"allowed_token_ids": [END]}))
    assert text == ""


@pytest.mark.parametrize("route", ROUTES)
def test_bad_words_are_not_written(server: Running, route: str) -> None:
    fields = {"allowed_token_ids": [A, B], "n": 4}
    assert any("ab" in text for text in texts(post(server, route, fields)))
    for words, left in ((["ab"], "ab"), (["ab", " ba"], "ba"), (["aa", "bb"], "aa"), ([], "")):
        for text in texts(post(server, route, {**fields, "bad_words": words})):
            assert not any(word.strip() in text for word in words), text
            assert left in text or words
    (text,) = texts(post(server, route, {"bad_words": ["<|im_end|>"], "logit_bias": {str(END): 90}}))
    assert len(text) >= 6  # a control token is a word like any other: the answer can't end


def test_logprobs_are_the_models_own(server: Running) -> None:
    greedy = {"prompt": "Hello", "temperature": 0, "max_tokens": 1, "logprobs": 3}
    free = post(server, TEXT, greedy)["choices"][0]["logprobs"]
    held = post(server, TEXT, {**greedy, "allowed_token_ids": [A]})["choices"][0]["logprobs"]
    assert held["tokens"] == ["a"]
    assert {**held["top_logprobs"][0], **free["top_logprobs"][0]} == held["top_logprobs"][0]
    assert held["token_logprobs"][0] < free["token_logprobs"][0]


def test_beside_a_grammar(server: Running) -> None:
    fields = {"guided_regex": "[abc]{3,9}", "allowed_token_ids": [A, C, END], "bad_words": ["ca"]}
    for text in texts(post(server, CHAT, {**fields, "n": 4})):
        assert set(text) <= set("ac")
        assert "ca" not in text
    with server.http() as http:
        for route in ROUTES:
            asked = valid_request(route, {"guided_regex": "[0-9]{3}", "allowed_token_ids": [A]})
            answer = http.post(route, json=asked)
            error = checked_error(answer.json())
            assert (answer.status_code, error["param"]) == (400, "allowed_token_ids")
            assert error["code"] == "no_token_left"
            assert "'guided_regex'" in error["message"]


def test_an_answer_that_gets_stuck_ends_its_stream_with_an_error(server: Running) -> None:
    fields = {"allowed_token_ids": [A], "bad_words": ["aaaa"], "max_tokens": 10}
    for route in ROUTES:
        *chunks, last = streamed(server, route, fields)
        assert checked_error(last)["code"] == "no_token_left"
        assert "after 3 tokens" in last["error"]["message"]
        assert chunks
    check_alive(server)


@pytest.mark.slow
def test_on_the_other_routes(server: Running) -> None:
    body = {"model": "tiny", "input": "Hi", "max_output_tokens": 9, "allowed_token_ids": [A, B]}
    with server.http() as http:
        answer = http.post("/v1/responses", json={**body, "bad_words": ["ab"]})
    text = answer.json()["output"][0]["content"][0]["text"]
    assert set(text) <= set("ab")
    assert "ab" not in text
    found = compare(server, "tiny", "alpha", allowed_token_ids=[A, B], bad_words=["aa"], messages=MESSAGES)
    for answer in found["cases"][0]["answers"]:
        assert set(answer["text"]) == set("ab")
        assert "aa" not in answer["text"]


BAD: tuple[tuple[str, Any, str], ...] = (
    ("allowed_token_ids", [], "at least 1"),
    ("allowed_token_ids", [259], "ids go from 0 to 258"),
    ("allowed_token_ids", [1, -1], "greater"),
    ("allowed_token_ids", [10**12], "less"),
    ("allowed_token_ids", [True], "integer"),
    ("allowed_token_ids", ["a"], "integer"),
    ("allowed_token_ids", {"1": 1}, "list"),
    ("allowed_token_ids", 5, "list"),
    ("allowed_token_ids", [1] * (2**18 + 1), "at most"),
    ("bad_words", [""], "at least 1"),
    ("bad_words", ["x" * 65], "at most 64"),
    ("bad_words", ["x"] * 257, "at most 256"),
    ("bad_words", "word", "list"),
    ("bad_words", [5], "string"),
    ("bad_words", [["a"]], "string"),
)


@pytest.mark.parametrize(("name", "value", "piece"), BAD, ids=lambda value: str(value)[:20])
def test_what_is_refused(server: Running, name: str, value: Any, piece: str) -> None:
    with server.http() as http:
        for route in ROUTES:
            answer = http.post(route, json=valid_request(route, {name: value}))
            error = checked_error(answer.json())
            assert answer.status_code == 400
            assert error["param"].split("[")[0] == name
            assert piece in error["message"]
            assert http.post(route, json=valid_request(route, {name: None})).status_code == 200
