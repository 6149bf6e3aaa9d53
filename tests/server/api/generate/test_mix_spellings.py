"""One mix has many spellings: each runs the very same model, on every route, streamed or not, bit for bit."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from tests.support.admin_client import error_of
from tests.support.running_server import Running

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "hello"}],
        "logprobs": True,
        "top_logprobs": 3,
    },
    "/v1/completions": {"prompt": "hello there", "logprobs": 3},
}
SALTS = count()


def entries(*members: tuple[str, float]) -> dict[str, Any]:
    return {"model": "tiny", "adapters": [{"name": name, "weight": weight} for name, weight in members]}


ADAPTER: list[dict[str, Any]] = [
    {"model": "alpha"},
    {"model": "alpha*1"},
    {"model": "alpha*1.0"},
    {"model": "alpha*0.5+alpha*0.5"},
    {"model": "alpha*3+alpha*-2"},
    {"model": "alpha+beta*0"},
    {"model": "tiny", "adapters": [{"name": "alpha"}]},
    entries(("alpha", 1)),
    entries(("alpha", 0.25), ("beta", 0), ("alpha", 0.75)),
]
BASE: list[dict[str, Any]] = [
    {"model": "tiny"},
    {"model": "tiny", "adapters": []},
    {"model": "alpha*0"},
    {"model": "alpha*0+beta*-0"},
    {"model": "alpha*2+alpha*-2"},
    entries(("alpha", 0)),
    entries(("alpha", 0.5), ("beta", 0), ("alpha", -0.5)),
]
MIX: list[dict[str, Any]] = [
    {"model": "alpha*0.7+beta*-0.3"},
    {"model": "beta*-0.3+alpha*0.7"},
    {"model": "alpha*0.3+beta*-0.3+alpha*0.4"},
    entries(("alpha", 0.7), ("beta", -0.3)),
    entries(("beta", -0.3), ("alpha", 0.7)),
]


def ask(server: Running, route: str, what: dict[str, Any], *, stream: bool) -> list[Any]:
    """Text and log-probabilities of an answer whose prompt is not in the cache."""
    body = {**ROUTES[route], **what, "max_tokens": 5, "temperature": 0, "stream": stream}
    with server.http() as http:
        answer = http.post(route, json={**body, "cache_salt": f"spelling-{next(SALTS)}"})
    assert answer.status_code == 200, answer.text
    if not stream:
        (choice,) = answer.json()["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        return [text, *_scores(choice["logprobs"])]
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    texts = [c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices]
    return ["".join(texts), *(score for c in choices if c["logprobs"] for score in _scores(c["logprobs"]))]


def _scores(logprobs: dict[str, Any]) -> list[Any]:
    if "content" in logprobs:
        return [(entry["logprob"], entry["top_logprobs"]) for entry in logprobs["content"]]
    return list(zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("spellings", [ADAPTER, BASE, MIX], ids=["adapter", "base", "mix"])
def test_every_spelling_is_the_same_model(server: Running, route: str, spellings: list[Any]) -> None:
    expected = ask(server, route, spellings[0], stream=False)
    assert len(expected) == 6
    for what in spellings:
        for stream in (False, True):
            assert ask(server, route, what, stream=stream) == expected, what


def test_they_are_three_models(server: Running) -> None:
    route = "/v1/completions"
    answers = [ask(server, route, spellings[0], stream=False)[1] for spellings in (ADAPTER, BASE, MIX)]
    assert len({answer[0] for answer in answers}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "status", "param", "named"),
    [
        ({"model": "alpha*0.5+nobody*0.5"}, 404, "model", "nobody"),
        ({"model": "alpha*0.5+beta@0000"}, 404, "model", "beta"),
        ({"model": "alpha*0.5+beta*9"}, 400, "model", "beta"),
        ({"model": "alpha * 0.5 + beta"}, 400, "model", "without spaces"),
        ({"model": "alpha*0.5+tiny*0.5"}, 400, "model", "'tiny' is the base model"),
        (entries(("alpha", 1), ("nobody", 1)), 404, "adapters[1].name", "nobody"),
        (entries(("alpha", 1), ("beta@0000", 1)), 404, "adapters[1].name", "beta"),
        (entries(("tiny", 1), ("beta", 1)), 400, "adapters", "'tiny' is the base model"),
        (entries(("alpha", 1), ("beta", 9)), 400, "adapters[1].weight", "beta"),
        (entries(("alpha", 1), ("beta*2", 1)), 400, "adapters[1].name", "beta*2"),
        ({"model": "tiny", "adapters": [{"name": "alpha"}, {"weight": 1}]}, 400, "adapters[1].name", "name"),
    ],
)
def test_errors_name_the_entry(
    server: Running, what: dict[str, Any], status: int, param: str, named: str
) -> None:
    with server.http() as http:
        for route, body in ROUTES.items():
            for stream in (False, True):
                answer = http.post(route, json={**body, **what, "stream": stream})
                assert error_of(answer)[::2] == (status, param)
                assert named in answer.json()["error"]["message"]
