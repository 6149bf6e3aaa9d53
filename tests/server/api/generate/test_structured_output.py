"""Structured output over HTTP: every spelling, on both routes, streamed and whole, and what is refused."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from manylora.server.api.http.middleware import IGNORED_FIELDS_HEADER
from tests.support.refused_requests import CHAT, MESSAGES, TEXT, check_alive, checked_error, valid_request
from tests.support.running_server import Running

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_tokens": 200, "seed": 1}
LARK = 'start: "<" /[a-z]{1,4}/ ">"'
GBNF = 'root ::= "<" [a-z] [a-z]? [a-z]? [a-z]? ">"'


def formatted(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, **more}}


def is_valid(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


def matches(pattern: str) -> Any:
    return re.compile(pattern).fullmatch


SPELLINGS: tuple[tuple[dict[str, Any], Any], ...] = (
    ({"response_format": formatted(SCHEMA)}, is_valid),
    ({"response_format": formatted(SCHEMA, strict=True, description="d")}, is_valid),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, is_valid),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, is_valid),
    ({"structured_outputs": {"json": SCHEMA}}, is_valid),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, is_valid),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        lambda t: is_valid(t) and " " not in t[:8],
    ),
    ({"structured_outputs": {"regex": "[a-c]{3}"}}, matches("[a-c]{3}")),
    ({"structured_outputs": {"choice": ["yes", "no", "maybe so"]}}, matches("yes|no|maybe so")),
    ({"structured_outputs": {"grammar": LARK}}, matches("<[a-z]{1,4}>")),
    ({"structured_outputs": {"grammar": GBNF}}, matches("<[a-z]{1,4}>")),
    ({"guided_json": SCHEMA, "guided_whitespace_pattern": " ?", "guided_decoding_backend": "x"}, is_valid),
    ({"guided_regex": "x{2}"}, matches("xx")),
    ({"guided_choice": ["one"]}, matches("one")),
    ({"guided_grammar": LARK}, matches("<[a-z]{1,4}>")),
    ({"json_schema": json.dumps(SCHEMA)}, is_valid),
    ({"json_schema": SCHEMA}, is_valid),
    ({"regex": "[0-9]{2}"}, matches("[0-9]{2}")),
    ({"ebnf": GBNF}, matches("<[a-z]{1,4}>")),
    ({"grammar": GBNF}, matches("<[a-z]{1,4}>")),
)


def post(server: Running, endpoint: str, fields: dict[str, Any]) -> Any:
    with server.http() as http:
        answer = http.post(endpoint, json=valid_request(endpoint, {**SAMPLED, **fields}))
    assert answer.status_code == 200, answer.text
    return answer.json()


def texts(answer: Any) -> list[str]:
    return [each["message"]["content"] if "message" in each else each["text"] for each in answer["choices"]]


def streamed(server: Running, endpoint: str, fields: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The texts of a stream's choices, and how each ended."""
    asked = valid_request(endpoint, {**SAMPLED, **fields, "stream": True})
    parts: dict[int, list[str]] = {}
    ends: dict[int, str] = {}
    with server.http() as http, http.stream("POST", endpoint, json=asked) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                text = choice["delta"].get("content") if "delta" in choice else choice["text"]
                parts.setdefault(choice["index"], []).append(text or "")
                if choice["finish_reason"]:
                    ends[choice["index"]] = choice["finish_reason"]
    return ["".join(parts[i]) for i in sorted(parts)], [ends[i] for i in sorted(ends)]


@pytest.mark.parametrize(
    ("fields", "check"), SPELLINGS, ids=lambda v: str(v)[:50] if isinstance(v, dict) else ""
)
@pytest.mark.parametrize("endpoint", [CHAT, TEXT])
def test_every_spelling(server: Running, endpoint: str, fields: dict[str, Any], check: Any) -> None:
    answer = post(server, endpoint, fields)
    assert answer["choices"][0]["finish_reason"] == "stop"
    (text,) = texts(answer)
    assert check(text), text


def test_any_object(server: Running) -> None:
    braces = {"logit_bias": {str(ord("}") - 33): 30, str(ord('"') - 33): 8}}  # it comes to its end
    for fields in (
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
    ):
        (text,) = texts(post(server, CHAT, {**fields, **braces}))
        assert isinstance(json.loads(text), dict)
    (text,) = texts(
        post(server, CHAT, {"response_format": {"type": "text"}, "max_tokens": 5, "ignore_eos": True})
    )
    assert text


@pytest.mark.parametrize("endpoint", [CHAT, TEXT])
def test_streams_equal_whole_answers(server: Running, endpoint: str) -> None:
    """For several answers, with adapters and mixes, also cut off."""
    variants: tuple[tuple[str, dict[str, Any]], ...] = (
        ("tiny", {"n": 3}),
        ("alpha", {"n": 2, "max_tokens": 12}),
        ("beta", {"stop": ["a"]}),
        ("alpha*0.5+beta*0.5", {"logprobs": 1 if endpoint == TEXT else True}),
    )
    for model, more in variants:
        fields = {"model": model, "response_format": formatted(SCHEMA), **more}
        whole = post(server, endpoint, fields)
        found, ends = streamed(server, endpoint, fields)
        assert found == texts(whole)
        assert ends == [choice["finish_reason"] for choice in whole["choices"]]
        if "max_tokens" in more:
            assert set(ends) == {"length"}


def test_seeds(server: Running) -> None:
    fields = {"response_format": formatted(SCHEMA), "n": 2}
    first, again = post(server, CHAT, fields), post(server, CHAT, fields)
    other = post(server, CHAT, {**fields, "seed": 2})
    assert texts(first) == texts(again) != texts(other)
    assert texts(first)[0] != texts(first)[1]


class Person(BaseModel):
    """What openai's client asks for by a type."""

    name: Literal["Ada", "Grace"]
    age: Literal[36, 85]
    friends: list[Literal["Alan"]] = []


def test_openais_client_parses_answers(server: Running) -> None:
    client = server.client()
    messages: Any = MESSAGES
    answer = client.chat.completions.parse(
        model="tiny", messages=messages, response_format=Person, seed=3, max_tokens=300
    )
    person = answer.choices[0].message.parsed
    assert person is not None
    assert person.name in ("Ada", "Grace")
    with client.chat.completions.stream(
        model="tiny", messages=messages, response_format=Person, seed=3, max_tokens=300
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == person


def test_a_lenient_schema_names_what_it_is_not_held_to(server: Running) -> None:
    schema = {**SCHEMA, "not": {"required": ["x"]}}
    with server.http() as http:
        strict, lenient = (
            http.post(
                CHAT,
                json=valid_request(CHAT, {**SAMPLED, "response_format": formatted(schema, strict=strict)}),
            )
            for strict in (True, False)
        )
    assert checked_error(strict.json())["param"] == "response_format.json_schema.schema.not"
    assert lenient.status_code == 200
    assert lenient.headers[IGNORED_FIELDS_HEADER] == "response_format.json_schema.schema.not"
    assert is_valid(lenient.json()["choices"][0]["message"]["content"])


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_object", "json_schema": {}}}, "response_format.json_schema"),
    ({"response_format": formatted("x")}, "response_format.json_schema.schema"),
    ({"response_format": formatted(SCHEMA, more=1)}, "response_format.json_schema.more"),
    (
        {"response_format": formatted({"type": "array", "uniqueItems": True})},
        "response_format.json_schema.schema.uniqueItems",
    ),
    (
        {"response_format": formatted({"properties": {"a": {"not": {}}}})},
        "response_format.json_schema.schema.properties.a.not",
    ),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["x"] * 2000}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a" * 300_000}}, "structured_outputs.regex"),
    ({"structured_outputs": {"json": {"description": "a" * 300_000}}}, "structured_outputs.json"),
    ({"structured_outputs": {"grammar": "nothing"}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"json": {}, "whitespace_pattern": "("}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a"}, "guided_choice": ["a"]}, "structured_outputs.regex"),
    ({"response_format": formatted(SCHEMA), "regex": "a"}, "response_format.json_schema.schema"),
    ({"guided_json": 3}, "guided_json"),
    ({"grammar": "root ::= ("}, "grammar"),
)


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda v: str(v)[:60])
def test_what_is_refused(server: Running, fields: dict[str, Any], param: str) -> None:
    for endpoint in (CHAT, TEXT):
        with server.http() as http:
            answer = http.post(endpoint, json=valid_request(endpoint, {**fields, "stream": True}))
        assert answer.status_code == 400, answer.text
        error = checked_error(answer.json())
        assert error["param"] is not None
        assert error["param"].startswith(param), error
        assert len(error["message"]) < 2000


_PARTS = [{"anyOf": [{"properties": {f"p{i}": {"const": i}}} for i in range(10)]}] * 12
HOSTILE: tuple[dict[str, Any], ...] = (
    {"structured_outputs": {"regex": "(" * 20 + "a{1,100000}" + "){1,100000}" * 20}},
    {"structured_outputs": {"regex": "(" * 100_000 + ")" * 100_000}},
    {"structured_outputs": {"grammar": "start: " + "(" * 100_000 + '"a"' + ")" * 100_000}},
    {"structured_outputs": {"json": {"allOf": _PARTS}}},
    {"ebnf": "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(9000)) + 'r9000 ::= "a"'},
)


@pytest.mark.slow
def test_hostile_grammars_harm_no_other_answer(server: Running) -> None:
    """400 in about a second, while streams go on."""
    asked = {"model": "alpha", "messages": MESSAGES, "max_tokens": 400, "ignore_eos": True, "temperature": 0}

    expected = "".join(_chunks(server.client(), asked))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: "".join(_chunks(server.client(), asked)))
        for fields in HOSTILE:
            began = monotonic()
            with server.http() as http:
                answer = http.post(CHAT, json=valid_request(CHAT, fields))
            assert answer.status_code == 400, fields
            assert monotonic() - began < 5.0  # a second where nothing else runs
        assert running.result() == expected
    check_alive(server)


def _chunks(client: openai.OpenAI, asked: dict[str, Any]) -> Any:
    extra = {"ignore_eos": asked["ignore_eos"]}
    plain = {name: value for name, value in asked.items() if name != "ignore_eos"}
    for chunk in client.chat.completions.create(**plain, stream=True, extra_body=extra):
        if chunk.choices:
            yield chunk.choices[0].delta.content or ""
