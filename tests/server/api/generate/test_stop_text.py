"""What ends an answer as part of its text, and tokens that are named by their ids."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.refused_requests import CHAT, TEXT, valid_request
from tests.support.running_server import Running

A, B, END = 64, 65, 258  # of the byte vocabulary
DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 7, "max_tokens": 60, "allowed_token_ids": [A, B], "n": 4}


def post(server: Running, route: str, fields: dict[str, Any]) -> Any:
    with server.http() as http:
        answer = http.post(route, json=valid_request(route, {**DRAWN, **fields}))
    assert answer.status_code == 200, answer.text
    return answer.json()


def told(answer: Any) -> list[tuple[str, Any, str]]:
    """Text, stop reason and end of each choice."""
    return [
        (
            each["message"]["content"] if "message" in each else each["text"],
            each["stop_reason"],
            each["finish_reason"],
        )
        for each in answer["choices"]
    ]


def streamed(server: Running, route: str, fields: dict[str, Any]) -> list[str]:
    asked = valid_request(route, {**DRAWN, **fields, "stream": True})
    texts = [""] * DRAWN["n"]
    with server.http() as http:
        for line in http.post(route, json=asked).text.splitlines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text = choice["delta"].get("content") if "delta" in choice else choice["text"]
                    texts[choice["index"]] += text or ""
    return texts


@pytest.mark.parametrize("name", ["include_stop_str_in_output", "no_stop_trim"])
@pytest.mark.parametrize("route", [CHAT, TEXT])
def test_a_stop_string_in_the_output(server: Running, route: str, name: str) -> None:
    """Streamed and whole; what comes before it is as without."""
    for stop in (["bab"], ["aab", "bba"], "b"):
        without = told(post(server, route, {"stop": stop}))
        fields = {"stop": stop, name: True}
        kept = told(post(server, route, fields))
        assert "stop" in {end for _, _, end in kept}
        assert kept == [(text + (reason or ""), reason, end) for text, reason, end in without]
        assert streamed(server, route, fields) == [text for text, _, _ in kept]


@pytest.mark.parametrize("route", [CHAT, TEXT])
def test_a_stop_token_in_the_output(server: Running, route: str) -> None:
    fields = {"stop_token_ids": [B], "min_tokens": 3}
    without = told(post(server, route, fields))
    kept = told(post(server, route, {**fields, "include_stop_str_in_output": True}))
    assert kept == [(f"{text}b", B, "stop") for text, _, _ in without]
    ended = {"allowed_token_ids": [A, END], "logit_bias": {str(END): 2}, "include_stop_str_in_output": True}
    assert all(
        set(text) <= {"a"} for text, _, _ in told(post(server, route, ended))
    )  # a control token is no text
    shown = told(post(server, route, {**ended, "skip_special_tokens": False}))
    assert any(text.endswith("<|im_end|>") for text, _, _ in shown)


def test_below_the_minimum_a_stop_string_is_text(server: Running) -> None:
    fields = {"stop": "b", "min_tokens": 9, "include_stop_str_in_output": True}
    for text, _, end in told(post(server, TEXT, fields)):
        assert len(text) >= 9
        assert "b" not in text[8:-1]
        assert (text[-1] == "b") == (end == "stop")


def test_log_probabilities_name_tokens_by_their_ids(server: Running) -> None:
    fields = {"max_tokens": 5, "return_token_ids": True, "n": 1}
    names = {"return_tokens_as_token_ids": True}
    plain = post(server, TEXT, {**fields, "logprobs": 2, "echo": True})["choices"][0]
    named = post(server, TEXT, {**fields, **names, "logprobs": 2, "echo": True})["choices"][0]
    ids = [*named["prompt_token_ids"], *named["token_ids"]]
    assert named["logprobs"]["tokens"] == [f"token_id:{token}" for token in ids]
    for key in ("token_logprobs", "text_offset"):
        assert named["logprobs"][key] == plain["logprobs"][key]
    for token, top in zip(ids[1:], named["logprobs"]["top_logprobs"][1:], strict=True):
        assert f"token_id:{token}" in top
        assert 2 <= len(top) <= 3
    chat = {**fields, "logprobs": True, "top_logprobs": 2}
    plain, named = (post(server, CHAT, {**chat, **more})["choices"][0] for more in ({}, names))
    entries = named["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == [f"token_id:{token}" for token in named["token_ids"]]
    for entry, other in zip(entries, plain["logprobs"]["content"], strict=True):
        assert {**entry, "token": "", "top_logprobs": 0} == {**other, "token": "", "top_logprobs": 0}
        assert all(top["token"].startswith("token_id:") for top in entry["top_logprobs"])
