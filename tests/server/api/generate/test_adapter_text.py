"""Adapters that bring a chat template or a tokenizer: read, rendered and answered with their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service
from tests.support.tiny_models import byte_tokenizer, tiny_model
from tests.support.vocabulary_adapters import GROWN, make

pytestmark = pytest.mark.slow

OWN = "{% for m in messages %}[{{ m.content }}]{% endfor %}{{ eos_token }}"
BOMB = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
FAR = 293  # an id behind the base's vocabulary
MESSAGES = [{"role": "user", "content": "hi"}]
TEMPLATES = {"own": OWN, "copy": OWN, "other": "other", "bomb": BOMB, "picky": "{{ raise_exception('no') }}"}


def _write(root: Path, model: Path) -> dict[str, Path]:
    names = (*TEMPLATES, "plain", "tokens", "rival")
    paths = {
        name: write_adapter(root / name, model, seed=i, scale=0.3, targets="all-linear")
        for i, name in enumerate(names)
    }
    for name, template in TEMPLATES.items():
        (paths[name] / "chat_template.jinja").write_text(template)
    for name, token in (("tokens", "<call>"), ("rival", "<name>")):
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens([AddedToken(token, special=True)])
        tokenizer.eos_token = token
        tokenizer.save_pretrained(paths[name])
    byte_tokenizer().save_pretrained(paths["plain"])
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    paths["grown"] = make(root / "grown", model, seed=9, rows=GROWN, **options)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<t{i}>" for i in range(FAR - 258)])
    tokenizer.save_pretrained(paths["grown"])
    return paths


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    paths = _write(tmp_path_factory.mktemp("adapters"), model)
    service = tiny_service(model, tmp_path_factory.mktemp("data"), adapter=paths)
    with serving(service) as running:
        yield running
        running.wait_until_idle()


def tokenize(server: Running, model: str, **body: Any) -> Any:
    with server.http() as http:
        return http.post("/tokenize", json={"model": model, **body}).json()


def chat(server: Running, model: str, **body: Any) -> tuple[int, Any]:
    request = {"model": model, "messages": MESSAGES, "max_tokens": 4, "temperature": 0, **body}
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json=request)
    return answer.status_code, answer.json()


def prompt_of(server: Running, model: str) -> str:
    ids = tokenize(server, model, messages=MESSAGES)["tokens"]
    with server.http() as http:
        return str(http.post("/detokenize", json={"model": model, "tokens": ids}).json()["prompt"])


BASE_PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("model", "prompt"),
    [
        ("tiny", BASE_PROMPT),
        ("plain", BASE_PROMPT),
        ("own", "[hi]<|im_end|>"),
        ("own*0.5+plain", "[hi]<|im_end|>"),  # those that bring nothing have no say
        ("own+copy", "[hi]<|im_end|>"),  # the same template twice is one
        ("tokens", BASE_PROMPT),
        ("own+tokens", "[hi]<call>"),  # one brings the template, the other the tokens in it
    ],
)
def test_whose_template_answers(server: Running, model: str, prompt: str) -> None:
    assert prompt_of(server, model) == prompt
    status, answer = chat(server, model)
    assert status == 200
    count = len(tokenize(server, model, messages=MESSAGES)["tokens"])
    assert answer["usage"]["prompt_tokens"] == count


def test_it_is_shown_whose_template_and_tokenizer_answer(server: Running) -> None:
    def shown(name: str) -> tuple[str, str]:
        with server.http() as http:
            details = http.get(f"/v1/adapters/{name}").json()["details"]
        return details["chat_template"].partition(":")[0], details["tokenizer"].partition(":")[0]

    assert shown("plain") == ("base", "base")
    assert shown("own") == ("adapter", "base")
    assert shown("tokens") == ("base", "adapter")


def test_the_answer_is_that_of_the_rendered_prompt(server: Running) -> None:
    _, answer = chat(server, "own")
    with server.http() as http:
        body = {"model": "own", "prompt": "[hi]<|im_end|>", "max_tokens": 4, "temperature": 0}
        completed = http.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == completed["choices"][0]["text"]


def test_a_mix_of_two_templates_is_refused_where_one_is_needed(server: Running) -> None:
    status, answer = chat(server, "own+other")
    assert status == 400
    assert "different chat templates" in answer["error"]["message"]
    assert "'own@" in answer["error"]["message"]
    assert "'other@" in answer["error"]["message"]
    assert answer["error"]["param"] == "model"
    with server.http() as http:
        body = {"model": "own+other", "prompt": "x", "max_tokens": 1}
        assert http.post("/v1/completions", json=body).status_code == 200


def test_a_mix_of_two_tokenizers_is_refused(server: Running) -> None:
    answer = tokenize(server, "tokens+rival", prompt="x")
    assert "different tokenizers" in answer["error"]["message"]
    assert answer["error"]["param"] == "model"


@pytest.mark.parametrize(("model", "reason"), [("bomb", "did not end within"), ("picky", "no")])
def test_a_template_that_fails_names_its_adapter(server: Running, model: str, reason: str) -> None:
    status, answer = chat(server, model)
    assert status == 400
    error = answer["error"]
    assert f"the chat template of {model}@" in error["message"]
    assert reason in error["message"]
    assert (error["param"], error["code"]) == ("messages", "chat_template_failed")
    assert chat(server, "tiny")[0] == 200
    assert server.references == 0


def test_tokens_of_its_own_are_read_and_written(server: Running) -> None:
    assert tokenize(server, "tokens", prompt="a<call>")["tokens"][-1] == 259
    assert len(tokenize(server, "tiny", prompt="a<call>")["tokens"]) == 7
    with server.http() as http:
        body = {"tokens": [259]}
        assert http.post("/detokenize", json={"model": "tokens", **body}).json() == {"prompt": "<call>"}
        sizes = [
            http.get("/tokenizer_info", params=of).json()["vocab_size"] for of in ({}, {"model": "tokens"})
        ]
        assert sizes[0] < sizes[1]
        assert http.post("/detokenize", json=body).status_code == 400
        assert http.post("/v1/completions", json={"model": "tokens", "prompt": [259]}).status_code == 200
        assert http.post("/v1/completions", json={"model": "tiny", "prompt": [259]}).status_code == 400


def test_the_end_token_of_an_adapter_ends_its_answers_alone(server: Running) -> None:
    bias = {"logit_bias": {"259": 100}, "logprobs": True}
    _, answer = chat(server, "tokens", **bias)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 1
    assert answer["choices"][0]["logprobs"]["content"][0]["token"] == "<call>"
    _, answer = chat(server, "tokens", **bias, min_tokens=2)
    assert answer["usage"]["completion_tokens"] == 3
    status, answer = chat(server, "plain", **bias)
    assert status == 400
    assert answer["error"]["param"] == "logit_bias"


def test_a_stream_reads_with_the_adapters_tokenizer(server: Running) -> None:
    body = {
        "model": "tokens", "prompt": "x", "max_tokens": 2, "temperature": 0, "stream": True,
        "logit_bias": {"259": 100}, "ignore_eos": True, "skip_special_tokens": False,
    }  # fmt: skip
    text = ""
    with server.http() as http, http.stream("POST", "/v1/completions", json=body) as lines:
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                text += "".join(c["text"] for c in json.loads(line[6:])["choices"])
    assert text == "<call><call>"


def test_tokens_behind_the_bases_vocabulary(server: Running) -> None:
    """Read, generated, scored and written for the adapter that has them, and unknown to everyone else."""
    text = f"<t{FAR - 259}>"
    ids = tokenize(server, "grown", prompt=f"a{text}")["tokens"]
    assert ids[-1] == FAR
    body = {"prompt": ids, "max_tokens": 2, "logit_bias": {str(FAR): 100}, "logprobs": 2, "echo": True}
    with server.http() as http:
        answer = http.post("/v1/completions", json={"model": "grown", **body}).json()
        assert answer["choices"][0]["text"] == f"a{text}{text}{text}"
        assert answer["choices"][0]["logprobs"]["tokens"] == ["a", text, text, text]
        for model in ("tiny", "plain"):
            refused = http.post("/v1/completions", json={"model": model, **body})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "prompt"
        mixed = http.post("/v1/completions", json={"model": "grown*0.5+plain", **body})
        assert mixed.status_code == 200
