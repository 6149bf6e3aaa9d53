"""Every accepted parameter has an effect."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.support.running_server import Running

PROMPT = "The quick brown fox"


def _complete(server: Running, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    with server.http() as http:
        answer = http.post("/v1/completions", json={**body, **fields})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def _text(server: Running, **fields: Any) -> str:
    return str(_complete(server, **fields)["choices"][0]["text"])


@pytest.mark.slow
def test_temperature_zero_is_greedy_and_not_dropped(server: Running) -> None:
    assert len({_text(server, temperature=0) for _ in range(3)}) == 1
    assert len({_text(server, temperature=2, seed=seed) for seed in range(3)}) == 3


@pytest.mark.slow
def test_seed_decides_the_answer(server: Running) -> None:
    drawn = {seed: _text(server, temperature=1.5, seed=seed) for seed in (0, 1, -(2**63), 2**63 - 1)}
    assert len(set(drawn.values())) == len(drawn)
    assert all(_text(server, temperature=1.5, seed=seed) == text for seed, text in drawn.items())


@pytest.mark.parametrize("fields", [{"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}], ids=str)
def test_filters_that_leave_one_token_are_greedy(server: Running, fields: dict[str, Any]) -> None:
    assert _text(server, temperature=2, seed=3, **fields) == _text(server)


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_off(server: Running, top_k: int) -> None:
    assert _text(server, temperature=2, seed=3, top_k=top_k) == _text(server, temperature=2, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 2}],
    ids=str,
)
def test_penalties_change_a_repetitive_answer(server: Running, fields: dict[str, Any]) -> None:
    long = {"max_tokens": 128}
    assert _text(server, **long, **fields) != _text(server, **long)


def test_logit_bias_forces_and_bans(server: Running) -> None:
    assert _text(server, max_tokens=3, logit_bias={"65": 90, "66": 80}) == "bbb"
    assert _text(server, max_tokens=3, logit_bias={"65": -100, "66": 80}) == "ccc"


def test_max_tokens_and_its_default(server: Running) -> None:
    assert _complete(server, max_tokens=5)["usage"]["completion_tokens"] == 5
    assert _complete(server, max_tokens=None)["usage"]["completion_tokens"] == 16


def test_chat_may_fill_the_context(server: Running) -> None:
    messages = [{"role": "user", "content": "x" * 1950}]
    with server.http() as http:
        answer = http.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": messages, "ignore_eos": True}
        ).json()
    assert answer["usage"]["total_tokens"] == 2048
    assert answer["choices"][0]["finish_reason"] == "length"


def test_stop_strings_cut_the_answer(server: Running) -> None:
    whole = _text(server, logit_bias={"65": 100})
    assert whole == "b" * 16
    choice = _complete(server, logit_bias={"65": 100}, stop="bbb")["choices"][0]
    assert choice["text"] == ""
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == "bbb"
    assert _text(server, logit_bias={"65": 100}, stop=["x", "y"]) == whole


def test_stop_token_ids_and_min_tokens(server: Running) -> None:
    forced = {"logit_bias": {"65": 100}}
    stopped = _complete(server, **forced, stop_token_ids=[65])
    assert stopped["usage"]["completion_tokens"] == 1
    assert stopped["choices"][0]["stop_reason"] == 65
    longer = _complete(server, stop_token_ids=[65], min_tokens=4, **forced)
    assert longer["usage"]["completion_tokens"] >= 4


def test_ignore_eos_and_skip_special_tokens(server: Running) -> None:
    forced = {"logit_bias": {"258": 100}}
    assert _complete(server, **forced, ignore_eos=False)["usage"]["completion_tokens"] == 1
    assert _complete(server, **forced, ignore_eos=False)["choices"][0]["finish_reason"] == "stop"
    assert _text(server, **forced, max_tokens=2) == ""
    assert _text(server, **forced, max_tokens=2, skip_special_tokens=False) == "<|im_end|>" * 2


def test_n_gives_different_answers(server: Running) -> None:
    answer = _complete(server, n=4, temperature=1.5, seed=1)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in answer["choices"]}) == 4
    assert answer["usage"]["completion_tokens"] == 64


def test_best_of_equal_to_n(server: Running) -> None:
    assert len(_complete(server, n=2, best_of=2)["choices"]) == 2


def test_logprobs_are_log_probabilities(server: Running) -> None:
    logprobs = _complete(server, max_tokens=4, logprobs=20)["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == 4
    for chosen, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert chosen == max(top.values())
        assert sum(map(math.exp, top.values())) <= 1.0001


def test_chat_logprobs(server: Running) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 3,
        "temperature": 0,
        "logprobs": True,
        "ignore_eos": True,
    }
    with server.http() as http:
        plain = http.post("/v1/chat/completions", json=body).json()["choices"][0]
        top = http.post("/v1/chat/completions", json={**body, "top_logprobs": 2}).json()["choices"][0]
    assert [token["top_logprobs"] for token in plain["logprobs"]["content"]] == [[], [], []]
    for token in top["logprobs"]["content"]:
        assert token["top_logprobs"][0]["token"] == token["token"]
        assert len(token["top_logprobs"]) == 2
        assert all(0 <= byte < 256 for byte in token["bytes"])


def test_cached_tokens_and_cache_salt(server: Running) -> None:
    prompt = "salted " * 20

    def cached(salt: str | None) -> int:
        usage = _complete(server, prompt=prompt, cache_salt=salt)["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached("one") == 0
    assert cached("one") >= 128
    assert cached("two") == 0
    assert cached(None) == 0
    assert cached(None) >= 128


def test_add_generation_prompt(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    with server.http() as http:
        with_prompt = http.post("/tokenize", json=body).json()["tokens"]
        without = http.post("/tokenize", json={**body, "add_generation_prompt": False}).json()["tokens"]
        chat = {"model": "tiny", "max_tokens": 1, **body}
        usages = [
            http.post("/v1/chat/completions", json={**chat, "add_generation_prompt": wanted}).json()["usage"]
            for wanted in (True, False)
        ]
    assert with_prompt[: len(without)] == without
    assert [usage["prompt_tokens"] for usage in usages] == [len(with_prompt), len(without)]


def test_developer_is_system_and_parts_are_joined(server: Running) -> None:
    def ids(*messages: dict[str, Any]) -> object:
        with server.http() as http:
            return http.post("/tokenize", json={"messages": messages}).json()["tokens"]

    system = {"role": "system", "content": "a\nb"}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ids(system) == ids({"role": "developer", "content": parts})


def test_adapters_and_mixes_change_the_answer(server: Running) -> None:
    names = ("tiny", "alpha", "beta", "alpha*0.5+beta*0.5", "alpha*-1", "alpha*0.3")
    assert len({_text(server, model=name) for name in names}) == len(names)


@pytest.mark.slow
def test_a_mix_as_json_is_the_mix_as_text(server: Running) -> None:
    as_text = _complete(server, model="alpha*0.7+beta*0.3")
    entries = [{"name": "alpha", "weight": 0.7}, {"name": "beta", "weight": 0.3}]
    as_json = _complete(server, adapters=entries)
    assert as_json["model"] == as_text["model"]
    assert as_json["choices"] == as_text["choices"]
    assert _text(server, adapters=[]) == _text(server)
    assert _text(server, adapters=[{"name": "alpha"}]) == _text(server, model="alpha")


def test_a_revision_can_be_asked_for(server: Running) -> None:
    served = _complete(server, model="alpha")["model"]
    name, _, revision = served.partition("@")
    assert name == "alpha"
    assert len(revision) == 8
    assert _complete(server, model=served)["choices"] == _complete(server, model="alpha")["choices"]
