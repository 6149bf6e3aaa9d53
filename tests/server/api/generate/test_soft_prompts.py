"""Adapters with virtual tokens over HTTP: answers, limits, usage, mixes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service
from tests.support.soft_prompts import (
    TOKENS,
    SoftPromptPeft,
    model_for_prefixes,
    write_soft_prompt,
    write_soft_prompts,
)
from tests.support.tiny_models import byte_tokenizer

pytestmark = pytest.mark.slow

CONTEXT = 96
LABELS = ("bad", "fair", "good")


class World:
    """A server with a short context, and what its adapters are."""

    def __init__(self, root: Path) -> None:
        self.model = model_for_prefixes(root / "model", "llama")
        self.paths = write_soft_prompts(root, self.model)
        self.oracle = SoftPromptPeft(self.model, self.paths)
        self.classifiers = {
            f"{name}-classes": write_soft_prompt(root / f"{name}-c", self.model, name, labels=LABELS)
            for name in ("prompt", "multitask", "cartridge")
        }
        self.scores = SoftPromptPeft(self.model, self.classifiers, labels=LABELS)
        self.others = {
            "lora": write_adapter(root / "lora", self.model, seed=1),
            "alora": write_adapter(root / "alora", self.model, seed=2, alora_invocation_tokens=[63]),
        }

    def greedy(self, name: str, text: str, count: int) -> str:
        ids = list(byte_tokenizer().encode(text))
        start = len(ids)
        for _ in range(count):
            ids.append(int(self.oracle.logits(ids, name)[-1].argmax()))
        decoded: str = byte_tokenizer().decode(ids[start:], skip_special_tokens=True)
        return decoded


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def running(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = tiny_service(
        world.model,
        tmp_path_factory.mktemp("data"),
        adapter=world.paths | world.classifiers | world.others,
        max_model_len=CONTEXT,
        max_batch_tokens=32,
        merge_memory=1 << 20,
        export_root=tmp_path_factory.mktemp("exports"),
        adapter_root=[next(iter(world.paths.values())).parent],
    )
    with serving(service) as server:
        yield server


@pytest.fixture
def server(running: Running) -> Iterator[Running]:
    yield running
    running.wait_until_idle()


def ask(server: Running, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    with server.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    result: dict[str, Any] = answer.json()
    return result if status < 400 else result["error"]


def complete(server: Running, status: int = 200, **body: Any) -> dict[str, Any]:
    defaults = {"temperature": 0, "max_tokens": 6, "prompt": "What is it", "ignore_eos": True}
    return ask(server, "/v1/completions", status, **defaults | body)


@pytest.mark.parametrize("name", TOKENS)
def test_answers_are_those_of_peft(server: Running, world: World, name: str) -> None:
    expected = world.greedy(name, "What is it", 6)
    for _ in range(2):  # the second time from the prefix cache
        answer = complete(server, model=name, n=2)
        assert [choice["text"] for choice in answer["choices"]] == [expected] * 2
        assert answer["usage"]["prompt_tokens"] == len("What is it"), "virtual tokens are no usage"
        assert answer["usage"]["total_tokens"] == len("What is it") + 12


@pytest.mark.parametrize("name", ["multitask", "prefix"])
def test_streams_and_echoes(server: Running, name: str) -> None:
    whole = complete(server, model=name, echo=True, logprobs=1)["choices"][0]
    prompt = "What is it"
    assert whole["text"].startswith(prompt)
    assert len(whole["logprobs"]["tokens"]) == len(prompt) + 6
    assert whole["logprobs"]["token_logprobs"][0] is None
    body = {"model": name, "prompt": prompt, "temperature": 0, "max_tokens": 6, "ignore_eos": True}
    with server.http() as http:
        stream = http.post("/v1/completions", json=body | {"stream": True}).text
    parts = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert prompt + "".join(part["choices"][0]["text"] for part in parts) == whole["text"]


@pytest.mark.parametrize("name", TOKENS)
def test_the_context_holds_virtual_tokens_too(server: Running, name: str) -> None:
    room = CONTEXT - TOKENS[name]
    fits = complete(server, model=name, prompt="x" * (room - 3), max_tokens=3)
    assert fits["usage"]["total_tokens"] == room
    assert complete(server, model=name, prompt="y" * (room - 4), max_tokens=None)["usage"] == {
        **fits["usage"], "prompt_tokens": room - 4, "completion_tokens": 4,
    }  # fmt: skip
    said = (
        f"The context window is {CONTEXT} tokens, of which {TOKENS[name]} are the adapter's virtual tokens,"
    )
    error = complete(server, 400, model=name, prompt="x" * room, max_tokens=3)
    assert error["message"].startswith(f"{said} and the prompt has {room}, which leaves no room")
    error = complete(server, 400, model=name, prompt="x" * (room - 3), max_tokens=4)
    assert error["message"].startswith(f"{said}; the prompt has {room - 3} and 'max_tokens' asks for 4")
    complete(server, model="tiny", prompt="x" * room, max_tokens=3)
    chat = {"model": name, "messages": [{"role": "user", "content": "x" * room}]}
    assert f"of which {TOKENS[name]} are" in ask(server, "/v1/chat/completions", 400, **chat)["message"]


def test_mixes(server: Running) -> None:
    """With LoRA at any weight, in any order, as a string and as JSON."""
    alone = complete(server, model="prefix")["choices"][0]["text"]
    mixed = complete(server, model="prefix+lora*1.5")["choices"][0]["text"]
    assert mixed != alone
    assert complete(server, model="lora*1.5+prefix")["choices"][0]["text"] == mixed
    entries = [{"name": "lora", "weight": 1.5}, {"name": "prefix", "weight": 1}]
    assert complete(server, model="tiny", adapters=entries)["choices"][0]["text"] == mixed


REFUSED = {
    "prompt+prefix": "both put virtual tokens before the text",
    "p+cpt+lora": "both put virtual tokens before the text",
    "prompt*0.5": "its weight must be 1, not 0.5",
    "lora+prefix*-1": "its weight must be 1, not -1.0",
    "prompt+prompt": "its weight must be 1, not 2.0",
    "alora+cartridge": "is an aLoRA: it is not served beside virtual tokens",
    "prompt-classes+lora": "classifies, so it can't be part of a mix",
    "prompt-classes": "classifies and writes no text",
}


@pytest.mark.parametrize("mix", REFUSED)
def test_mixes_without_a_meaning_are_refused(server: Running, mix: str) -> None:
    error = complete(server, 400, model=mix)
    assert REFUSED[mix] in error["message"]
    assert error["param"] == "model"


@pytest.mark.parametrize("name", [pytest.param("prompt", marks=pytest.mark.sweep), "prefix"])
def test_nothing_is_made_of_their_weights(server: Running, name: str) -> None:
    with server.http() as http:
        merged = http.post(f"/v1/adapters/{name}/merge")
        both = http.post(f"/v1/adapters/{name}+lora/merge")
        exported = http.post(f"/v1/adapters/{name}/export?wait=true", json={})
        composed = http.post(
            "/v1/adapters/new/compose?wait=true",
            json={"members": [{"name": name, "weight": 1}, {"name": "lora", "weight": 1}]},
        )
    for answer in (merged, both):
        assert answer.status_code == 422, answer.text
        assert "virtual tokens can't be merged" in answer.json()["error"]["message"]
    assert exported.status_code >= 400, exported.text
    assert "puts virtual tokens before every text" in exported.text
    assert composed.status_code >= 400, composed.text
    assert "it puts virtual tokens before every text" in composed.text


def test_what_is_said_of_them(server: Running) -> None:
    with server.http() as http:
        shown = {name: http.get(f"/v1/adapters/{name}").json() for name in (*TOKENS, "lora")}
    for name, tokens in TOKENS.items():
        assert shown[name]["details"]["virtual_tokens"] == tokens
        assert shown[name]["rank"] == 0
        left = {"virtual_tokens": tokens, "max_model_len": CONTEXT - tokens}
        with server.http() as http:
            cards = [http.get(f"/v1/models/{name}@{shown[name]['revision']}").json()]
            cards += [card for card in http.get("/v1/models").json()["data"] if card["id"] == name]
        assert [{key: card.get(key) for key in left} for card in cards] == [left] * 2
        assert ask(server, "/tokenize", model=name, prompt="x")["max_model_len"] == CONTEXT - tokens
    assert "virtual_tokens" not in shown["lora"]["details"]
    assert ask(server, "/tokenize", model="lora", prompt="x")["max_model_len"] == CONTEXT


@pytest.mark.parametrize("name", ["prompt", "multitask", "cartridge"])
def test_classifying(server: Running, world: World, name: str) -> None:
    texts = ["good", "so bad that it is worth some more words"]
    model = f"{name}-classes"
    for _ in range(2):
        found = ask(server, "/classify", model=model, input=texts, use_activation=False)["data"]
        for text, entry in zip(texts, found, strict=True):
            expected = world.scores.logits(list(byte_tokenizer().encode(text)), model)[0]
            assert entry["probs"] == pytest.approx(expected.tolist(), abs=1e-4)
            assert entry["label"] == LABELS[int(expected.argmax())]
    room = CONTEXT - TOKENS[name]
    ask(server, "/classify", model=model, input="x" * room)
    error = ask(server, "/classify", 400, model=model, input="x" * (room + 1))
    assert f"of which {TOKENS[name]} are the adapter's virtual tokens" in error["message"]
    cut = ask(server, "/classify", model=model, input="x" * 200, truncate_prompt_tokens=-1)
    assert cut["usage"]["prompt_tokens"] == room


def test_comparing(server: Running, world: World) -> None:
    body: dict[str, Any] = {
        "targets": ["prefix", "multitask", "tiny"],
        "prompt": "What is it",
        "max_tokens": 6,
    }
    result = ask(server, "/v1/compare", **body)
    texts = [answer["text"] for answer in result["cases"][0]["answers"]]
    assert texts[0].startswith(world.greedy("prefix", "What is it", 3)[:1])
    room = CONTEXT - TOKENS["multitask"]
    error = ask(server, "/v1/compare", 400, **body | {"prompt": "x" * (room - 2), "max_tokens": 3})
    assert "which is 1 too many" in error["message"]
    error = ask(
        server, "/v1/compare", 400, **body | {"prompt": "x" * (room - 2), "reference": "abc", "max_tokens": 0}
    )
    assert "the reference 3" in error["message"]


def test_a_soft_prompt_as_long_as_the_context_is_refused(server: Running, world: World) -> None:
    root = next(iter(world.paths.values())).parent
    for tokens, status in ((CONTEXT - 2, 201), (CONTEXT - 1, 422)):
        path = write_soft_prompt(root / f"long-{tokens}", world.model, "prompt", tokens=tokens)
        with server.http() as http:
            answer = http.put("/v1/adapters/long?wait=true", json={"source": str(path)})
        assert answer.status_code == status, answer.text
    assert "leaves no room for a text" in answer.text
    assert complete(server, model="long", prompt="x", max_tokens=1)["usage"]["total_tokens"] == 2
    assert "no room" in complete(server, 400, model="long", prompt="xy", max_tokens=1)["message"]
