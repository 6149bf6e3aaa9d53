"""Calls that answers are held to, by a model that would never call anything by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tokenizers import AddedToken

from tests.support import tool_templates as templates
from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service
from tests.support.tiny_models import byte_tokenizer, tiny_model

pytestmark = pytest.mark.slow

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["rain", "sun"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["kind", "days"],
    "additionalProperties": False,
}
STRICT: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": PARAMETERS, "strict": True},
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time"}}
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = tiny_model(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = templates.HERMES
    tokenizer.save_pretrained(model)
    root = tmp_path_factory.mktemp("adapters")
    own = {"coder": templates.CODER, "thinking": templates.THINKING, "opened": templates.OPENED}
    paths = {name: write_adapter(root / name, model, seed=i) for i, name in enumerate(own)}
    for name, template in own.items():
        (paths[name] / "chat_template.jinja").write_text(template)
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    for name in ("thinking", "opened"):
        tokenizer.chat_template = own[name]
        tokenizer.save_pretrained(paths[name])
    paths["spelled"] = write_adapter(root / "spelled", model, seed=9)
    (paths["spelled"] / "chat_template.jinja").write_text(templates.OPENED)
    service = tiny_service(model, tmp_path_factory.mktemp("data"), adapter=paths, kv_cache_memory=32 << 20)
    with serving(service) as running:
        yield running
        running.wait_until_idle()


def ask(server: Running, *, status: int = 200, **body: Any) -> Any:
    request = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 400,
        "seed": 1,
        "tools": [STRICT, TIME],
        **body,
    }
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={k: v for k, v in request.items() if v is not None})
    assert answer.status_code == status, answer.text
    return answer.json()["choices"] if status == 200 else answer.json()["error"]


def check(choice: dict[str, Any]) -> list[str]:
    """The names of the calls, each of which keeps its schema."""
    names = []
    for call in choice["message"]["tool_calls"]:
        arguments = json.loads(call["function"]["arguments"])
        names.append(call["function"]["name"])
        if names[-1] == "weather":
            Draft202012Validator(PARAMETERS).validate(arguments)
        else:
            assert arguments == {}
    assert choice["message"]["content"] is None
    return names


@pytest.mark.parametrize("model", ["tiny", "coder"])
def test_a_call_has_to_be(server: Running, model: str) -> None:
    choices = ask(server, model=model, tool_choice="required", parallel_tool_calls=False, n=4)
    for choice in choices:
        assert len(check(choice)) == 1
        assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_has_to_be_keeps_a_schema_that_is_not_strict(server: Running, choice: Any) -> None:
    loose = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
    for each in ask(server, tools=[loose], tool_choice=choice, parallel_tool_calls=False, n=3):
        assert check(each) == ["weather"]
    unkept = {**PARAMETERS, "properties": {"kind": {"not": {"enum": ["rain"]}}, "days": {"type": "string"}}}
    odd = {"type": "function", "function": {"name": "weather", "parameters": unkept}}
    ask(server, tools=[odd], tool_choice=choice, max_tokens=8)
    strict = {**STRICT, "function": {**STRICT["function"], "parameters": unkept}}
    assert "not" in ask(server, tools=[strict], tool_choice=choice, max_tokens=8, status=400)["param"]


def test_a_named_call_ends_as_at_openai(server: Running) -> None:
    for choice in ask(server, tool_choice=NAMED, n=3):
        assert check(choice) == ["weather"]
        assert choice["finish_reason"] == "stop"


def test_only_allowed_tools_are_called(server: Running) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    for each in ask(server, tool_choice=choice, parallel_tool_calls=False, n=3):
        assert check(each) == ["time"]


def test_reasoning_comes_before_a_call_that_has_to_be(server: Running) -> None:
    """The grammar begins behind the closing marker, which the budget brings about."""
    body: dict[str, Any] = {"tool_choice": NAMED, "thinking_token_budget": 20}
    (choice,) = ask(server, model="opened", **body)
    assert check(choice) == ["weather"]
    assert choice["message"]["reasoning_content"]
    (choice,) = ask(server, model="thinking", **body)
    assert check(choice) == ["weather"]


def test_a_budget_closes_reasoning(server: Running) -> None:
    (choice,) = ask(
        server, model="opened", tools=None, thinking_token_budget=12, max_tokens=60, ignore_eos=True
    )
    message = choice["message"]
    assert 0 < len(message["reasoning_content"]) <= 12  # a character has at least one token
    assert message["content"]
    (choice,) = ask(server, model="opened", tools=None, thinking_token_budget=0, max_tokens=60)
    assert choice["message"]["reasoning_content"] is None
    error = ask(server, model="spelled", tools=None, thinking_token_budget=5, status=400)
    assert error["param"] == "thinking_token_budget"


def test_a_call_or_what_a_schema_says(server: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    for choice in ask(server, response_format=form, parallel_tool_calls=False, n=4):
        if choice["message"].get("tool_calls"):
            check(choice)
        else:
            assert json.loads(choice["message"]["content"]) == {"a": 1}


def test_what_calls_can_not_be_held_to(server: Running) -> None:
    odd = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}
    assert ask(server, tools=[TIME, odd], status=400)["param"] == "tools[1].function.parameters.not"
    regex: dict[str, Any] = {"structured_outputs": {"regex": "x"}}
    assert ask(server, status=400, **regex)["param"] == "structured_outputs.regex"
    (choice,) = ask(server, tool_choice="none", **regex)
    assert choice["message"]["content"] == "x"
