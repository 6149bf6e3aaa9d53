"""vLLM's fields of answers: token ids, scores of the prompt, ids of the client's own, messages that go on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.running_server import Running

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Tell me more"}]
PRINTABLE = {str(token): 90 for token in range(94)}  # one character a token
GREEDY = {"model": "alpha", "temperature": 0, "max_tokens": 8, "ignore_eos": True, "logit_bias": PRINTABLE}
CHAT_BODY: dict[str, Any] = {**GREEDY, "messages": MESSAGES}
TEXT_BODY: dict[str, Any] = {**GREEDY, "prompt": "Hello"}


def post(server: Running, path: str, body: dict[str, Any]) -> Any:
    with server.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(server: Running, path: str, body: dict[str, Any]) -> list[Any]:
    """The chunks of a stream."""
    with server.http() as http:
        text = http.post(path, json={**body, "stream": True}).text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines[:-1]]


def prompt_of(server: Running, body: dict[str, Any]) -> list[int]:
    asked = {"messages": body["messages"]} if "messages" in body else {"prompt": body["prompt"]}
    ids: list[int] = post(server, "/tokenize", {"model": body["model"], **asked})["tokens"]
    return ids


def text_of(server: Running, ids: list[int]) -> str:
    return str(post(server, "/detokenize", {"tokens": ids})["prompt"])


def test_token_ids_of_chat(server: Running) -> None:
    asked = {**CHAT_BODY, "return_token_ids": True, "n": 2}
    answer = post(server, CHAT, asked)
    assert answer["prompt_token_ids"] == prompt_of(server, CHAT_BODY)
    for choice in answer["choices"]:
        assert len(choice["token_ids"]) == 8
        assert text_of(server, choice["token_ids"]) == choice["message"]["content"]
    chunks = streamed(server, CHAT, asked)
    assert chunks[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    assert all("prompt_token_ids" not in chunk for chunk in chunks[1:])
    for index, choice in enumerate(answer["choices"]):
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert [token for part in parts for token in part["token_ids"]] == choice["token_ids"]


def test_token_ids_of_completions(server: Running) -> None:
    asked = {**TEXT_BODY, "prompt": ["Hello", "Bye"], "return_token_ids": True}
    answer = post(server, TEXT, asked)
    chunks = streamed(server, TEXT, asked)
    for choice, prompt in zip(answer["choices"], asked["prompt"], strict=True):
        assert choice["prompt_token_ids"] == prompt_of(server, {**TEXT_BODY, "prompt": prompt})
        assert text_of(server, choice["token_ids"]) == choice["text"]
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert parts[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        assert all("prompt_token_ids" not in part for part in parts[1:])
        assert [token for part in parts for token in part["token_ids"]] == choice["token_ids"]


@pytest.mark.parametrize(("path", "body"), [(CHAT, CHAT_BODY), (TEXT, TEXT_BODY)])
def test_ids_and_scores_are_left_out_unless_asked_for(
    server: Running, path: str, body: dict[str, Any]
) -> None:
    text = json.dumps(post(server, path, body)) + json.dumps(streamed(server, path, body))
    assert "token_ids" not in text
    assert "prompt_logprobs" not in text


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 5])
def test_scores_of_the_prompt_are_those_of_an_echo(server: Running, count: int) -> None:
    ids = prompt_of(server, CHAT_BODY)
    echo = {**GREEDY, "prompt": ids, "echo": True, "logprobs": count, "max_tokens": 1}
    expected = post(server, TEXT, echo)["choices"][0]["logprobs"]["token_logprobs"][: len(ids)]
    chat = post(server, CHAT, {**CHAT_BODY, "prompt_logprobs": count})["prompt_logprobs"]
    text = post(server, TEXT, {**GREEDY, "prompt": ids, "prompt_logprobs": count})["choices"][0]
    assert text["logprobs"] is None
    for scores in (chat, text["prompt_logprobs"]):
        assert scores[0] is None
        own = [entry[str(token)] for entry, token in zip(scores[1:], ids[1:], strict=True)]
        assert [entry["logprob"] for entry in own] == pytest.approx(expected[1:], abs=1e-4)
        for entry in scores[1:]:
            assert count <= len(entry) <= count + 1
            ranks = sorted(each["rank"] for each in entry.values() if each["rank"] is not None)
            assert ranks == list(range(1, count + 1))


def test_scores_beside_an_echo_have_their_own_counts(server: Running) -> None:
    body = {**TEXT_BODY, "echo": True, "logprobs": 1, "prompt_logprobs": 4}
    choice = post(server, TEXT, body)["choices"][0]
    assert all(len(top) <= 2 for top in choice["logprobs"]["top_logprobs"][1:])
    assert all(4 <= len(entry) <= 5 for entry in choice["prompt_logprobs"][1:])
    plain = post(server, TEXT, {**TEXT_BODY, "echo": True, "logprobs": 1})["choices"][0]
    assert choice["text"] == plain["text"]
    assert choice["logprobs"]["tokens"] == plain["logprobs"]["tokens"]


@pytest.mark.parametrize(
    ("path", "body", "prefix"), [(CHAT, CHAT_BODY, "chatcmpl"), (TEXT, TEXT_BODY, "cmpl")]
)
def test_the_answer_has_the_id_that_was_asked_for(
    server: Running, path: str, body: dict[str, Any], prefix: str
) -> None:
    asked = {**body, "request_id": "job-7.a:b_c"}
    assert post(server, path, asked)["id"] == f"{prefix}-job-7.a:b_c"
    assert {chunk["id"] for chunk in streamed(server, path, asked)} == {f"{prefix}-job-7.a:b_c"}


def test_an_id_of_the_longest_kind_can_be_scored(server: Running) -> None:
    answer = post(server, CHAT, {**CHAT_BODY, "request_id": "x" * 100})
    assert post(server, "/v1/feedback", {"response_id": answer["id"], "score": 1})["model"] == answer["model"]


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_message_that_goes_on_gives_the_rest_of_the_answer(server: Running, cut: int) -> None:
    whole = post(server, CHAT, CHAT_BODY)["choices"][0]["message"]["content"]
    begun = [*MESSAGES, {"role": "assistant", "content": whole[:cut]}]
    asked = {**CHAT_BODY, "messages": begun, "continue_final_message": True, "max_tokens": 8 - cut}
    assert post(server, CHAT, asked)["choices"][0]["message"]["content"] == whole[cut:]


def test_tokenize_shows_a_message_that_goes_on(server: Running) -> None:
    begun = {"messages": [*MESSAGES, {"role": "assistant", "content": "Arr"}]}
    ids = post(server, "/tokenize", {**begun, "continue_final_message": True})["tokens"]
    assert text_of(server, ids).endswith("<|im_start|>assistant\nArr")


def test_usage_in_every_chunk(server: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    usages = [chunk["usage"] for chunk in streamed(server, CHAT, {**CHAT_BODY, "stream_options": options})]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert counts[-1] == 8
    assert {usage["prompt_tokens"] for usage in usages} == {len(prompt_of(server, CHAT_BODY))}


def test_answers_have_the_shape_of_the_official_ones(server: Running) -> None:
    message = post(server, CHAT, CHAT_BODY)["choices"][0]["message"]
    assert set(message) == {"role", "content", "refusal", "annotations"}
    assert message["refusal"] is None
    assert message["annotations"] == []
    first = streamed(server, CHAT, CHAT_BODY)[0]["choices"][0]["delta"]
    assert first == {"role": "assistant", "content": "", "refusal": None}


def test_an_answer_can_be_sent_back_as_it_came(server: Running) -> None:
    message = post(server, CHAT, CHAT_BODY)["choices"][0]["message"]
    assert post(server, CHAT, {**CHAT_BODY, "messages": [*MESSAGES, message, *MESSAGES]})["choices"]
