"""``truncate_prompt_tokens`` of prompts that are answered."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.refused_requests import CHAT, MESSAGES, TEXT, checked_error, valid_request
from tests.support.running_server import Running

CONTEXT = 2048
GREEDY: dict[str, Any] = {
    "temperature": 0, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True, "model": "alpha",
}  # fmt: skip
LONG = "".join(chr(97 + i % 26) for i in range(3000))


def post(server: Running, route: str, fields: dict[str, Any]) -> Any:
    with server.http() as http:
        answer = http.post(route, json=valid_request(route, {**GREEDY, **fields}))
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids_of(server: Running, **given: Any) -> list[int]:
    with server.http() as http:
        found: list[int] = http.post("/tokenize", json={"model": "tiny", **given}).json()["tokens"]
    return found


def continued(server: Running, ids: list[int], **fields: Any) -> list[int]:
    """The answer to a prompt in tokens."""
    choice = post(server, TEXT, {"prompt": ids, **fields})["choices"][0]
    tokens: list[int] = choice["token_ids"]
    return tokens


@pytest.mark.parametrize(
    ("side", "kept"), [(None, slice(-7, None)), ("left", slice(-7, None)), ("right", slice(7))]
)
def test_prompts_are_cut(server: Running, side: str | None, kept: slice) -> None:
    """At the left unless said otherwise: what is answered is their end."""
    fields = {"truncate_prompt_tokens": 7, "truncation_side": side, "n": 2}
    for route, given in ((CHAT, {"messages": MESSAGES}), (TEXT, {"prompt": "Once upon a time"})):
        whole = ids_of(server, **given)
        answer = post(server, route, {**fields, **given})
        assert answer["usage"]["prompt_tokens"] == 7
        prompt = answer["prompt_token_ids"] if route == CHAT else answer["choices"][0]["prompt_token_ids"]
        assert prompt == whole[kept]
        for choice in answer["choices"]:
            assert choice["token_ids"] == continued(server, whole[kept])
        uncut = post(server, route, {**fields, **given, "truncate_prompt_tokens": len(whole)})
        assert uncut["choices"][0]["token_ids"] == continued(server, whole)


@pytest.mark.parametrize("wanted", [6, None])
def test_as_much_is_kept_as_the_answer_leaves(server: Running, wanted: int | None) -> None:
    fields = {"truncate_prompt_tokens": -1, "max_tokens": wanted, "prompt": [LONG, "short"]}
    answer = post(server, TEXT, fields)
    room = CONTEXT - (16 if wanted is None else wanted)
    first, second = answer["choices"]
    assert first["prompt_token_ids"] == ids_of(server, prompt=LONG)[-room:]
    assert second["prompt_token_ids"] == ids_of(server, prompt="short")
    assert len(first["token_ids"]) == CONTEXT - room
    del fields["prompt"]
    chat = post(server, CHAT, {**fields, "messages": [{"role": "user", "content": LONG}]})
    room = CONTEXT - (1 if wanted is None else wanted)
    assert chat["usage"]["prompt_tokens"] == room
    assert chat["usage"]["completion_tokens"] == CONTEXT - room


def test_an_echo_is_what_was_read(server: Running) -> None:
    fields = {"prompt": "Once upon a time", "echo": True, "logprobs": 1, "truncate_prompt_tokens": 5}
    choice = post(server, TEXT, {**fields, "prompt_logprobs": 0})["choices"][0]
    assert choice["text"].startswith(" time")
    assert choice["logprobs"]["tokens"][:5] == list(" time")
    assert choice["logprobs"]["text_offset"][:6] == [0, 1, 2, 3, 4, 5]
    assert len(choice["prompt_logprobs"]) == 5
    whole = post(server, TEXT, {**fields, "truncate_prompt_tokens": 500})["choices"][0]
    assert whole["text"].startswith("Once upon a time")


BAD: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "must be -1, or from 1 to 2048"),
    ({"truncate_prompt_tokens": 2049}, "truncate_prompt_tokens", "must be -1, or from 1 to 2048"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "greater"),
    ({"truncate_prompt_tokens": "5"}, "truncate_prompt_tokens", "integer"),
    ({"truncation_side": "left"}, "truncation_side", "goes with"),
    ({"truncate_prompt_tokens": 5, "truncation_side": "middle"}, "truncation_side", "'left'"),
    ({"truncate_prompt_tokens": 2047}, "max_tokens", "1 too many"),
    ({"truncate_prompt_tokens": 2048}, "", "leaves no room"),
    ({"truncate_prompt_tokens": -1, "max_tokens": 2048}, "", "leaves no room"),
)


@pytest.mark.parametrize(("fields", "param", "piece"), BAD, ids=str)
def test_what_is_refused(server: Running, fields: dict[str, Any], param: str, piece: str) -> None:
    given: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": LONG}]},
        TEXT: {"prompt": LONG},
    }
    with server.http() as http:
        for route in (CHAT, TEXT):
            answer = http.post(route, json=valid_request(route, {**given[route], **fields}))
            error = checked_error(answer.json())
            assert (answer.status_code, error["param"]) == (400, param or next(iter(given[route])))
            assert piece in error["message"]


@pytest.mark.parametrize("bad", [-1, 10**9])
def test_tokens_that_are_cut_off_have_to_be_tokens_too(server: Running, bad: int) -> None:
    """And so have those that are read of a text that is too long."""
    ids = [bad] * 3 + [5] * 3000 + [bad] * 3
    asked: list[tuple[str, dict[str, Any]]] = [
        (TEXT, {"model": "tiny", "prompt": ids}),
        ("/v1/embeddings", {"model": "tiny", "input": [ids]}),
    ]
    with server.http() as http:
        for route, body in asked:
            for side in ("left", "right"):
                cut = {"truncate_prompt_tokens": 5, "truncation_side": side}
                answer = http.post(route, json={**body, **cut})
                assert answer.status_code == 400, answer.text
                assert "token ids go from 0" in checked_error(answer.json())["message"]
