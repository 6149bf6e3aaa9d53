"""Grammars of answers that call tools: they take what models are to write, and what they take is calls."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tokenizers import AddedToken

from manylora.adapters.format.answers.families import CALLS, by_name
from manylora.adapters.format.answers.syntax import Shape
from manylora.adapters.format.answers.writing import Call, write_calls
from manylora.server.errors import RequestError
from manylora.server.grammars.spec import GrammarSpec
from manylora.server.grammars.tool_calls import CalledTool, calls_grammar
from manylora.server.model.text.tokenizer import Tokenizer
from tests.support.answers import parse
from tests.support.grammars import grammar, takes, tokenizer_of_bytes, walk
from tests.support.tiny_models import byte_tokenizer

TOKENIZER = tokenizer_of_bytes()
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "kind": {"enum": ["rain", "sun"]},
    },
    "required": ["place", "days"],
}
WEATHER = CalledTool("get", SCHEMA, strict=True, path="tools[0].function.parameters")
LOOSE = CalledTool("get", SCHEMA, strict=False, path="tools[0].function.parameters")
OTHER = CalledTool("get_time", None, strict=False, path="tools[1].function.parameters")
PROPERTIES = {"get": SCHEMA["properties"], "get_time": {}}
SUN = Call("get", {"place": "Oslo {", "days": 3, "kind": "sun"})
TIME = Call("get_time", {})


def spec(
    name: str,
    *tools: CalledTool,
    required: bool = False,
    several: bool = True,
    control: dict[str, int] | None = None,
    **how: Any,
) -> GrammarSpec:
    made = calls_grammar(CALLS[name][1], tools, control or {}, required=required, several=several, **how)
    assert made is not None
    return made


@pytest.mark.parametrize("name", CALLS)
def test_what_a_model_is_to_write_is_taken(name: str) -> None:
    syntax = CALLS[name][1]
    made = grammar(spec(name, WEATHER, OTHER))
    one, both = write_calls(syntax, [SUN]), write_calls(syntax, [SUN, TIME])
    assert takes(made, "It is late.", TOKENIZER)
    assert takes(made, one, TOKENIZER)
    assert takes(made, both, TOKENIZER)
    if syntax.trigger:
        assert takes(made, f"Let me see.\n{both}", TOKENIZER)
    for broken in (one[:-3], one.replace("get", "got"), one.replace("days", "years"), one.replace("3", "33")):
        assert not takes(made, broken, TOKENIZER), broken


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_have_to_be(name: str) -> None:
    syntax = CALLS[name][1]
    made = grammar(spec(name, LOOSE, OTHER, required=True))
    for calls in ([SUN], [TIME], [SUN, TIME], [Call("get", {"odd": "1"})]):
        assert takes(made, write_calls(syntax, calls), TOKENIZER)
    for text in (
        "",
        "It is late.",
        f"So: {write_calls(syntax, [SUN])}",
        write_calls(syntax, [Call("other", {})]),
    ):
        assert not takes(made, text, TOKENIZER), text
    single = grammar(spec(name, WEATHER, required=True, several=False))
    assert takes(single, write_calls(syntax, [SUN]), TOKENIZER)
    assert not takes(single, write_calls(syntax, [SUN, SUN]), TOKENIZER)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_taken_is_read_as_calls_that_keep_the_schema(name: str) -> None:
    validator = Draft202012Validator(SCHEMA)
    made = grammar(spec(name, WEATHER, OTHER, required=True))
    read = 0
    for seed in range(12):
        text = walk(made, seed, TOKENIZER, most=400)
        if text is None or "�" in text:
            continue
        parsed = parse(by_name(name), text, PROPERTIES)
        assert parsed.calls, text
        assert not parsed.text.strip()
        for tool, arguments in parsed.read:
            assert tool in PROPERTIES
            if tool == "get" and CALLS[name][1].shape is not Shape.TAGGED:
                validator.validate(arguments)
        read += 1
    assert read


def test_markers_that_are_control_tokens() -> None:
    hf = byte_tokenizer()
    hf.add_tokens([AddedToken("[TOOL_CALLS]", special=True), AddedToken("[ARGS]", special=True)])
    tokenizer = Tokenizer(hf)
    control = {"[TOOL_CALLS]": 259, "[ARGS]": 260}
    made = grammar(spec("mistral-named", WEATHER, OTHER, control=control), tokenizer)
    text = write_calls(CALLS["mistral-named"][1], [SUN, TIME])
    assert tokenizer.encode(text).count(259) == 2
    assert takes(made, text, tokenizer)
    assert takes(made, f"Hm. {text}", tokenizer)
    assert takes(made, "Hm.", tokenizer)
    assert not takes(made, text.replace("[ARGS]", ""), tokenizer)


def test_schemas_that_answers_can_not_be_held_to_are_named() -> None:
    odd = CalledTool(
        "f", {"properties": {"a": {"not": {}}}}, strict=True, path="tools[3].function.parameters"
    )
    with pytest.raises(RequestError) as refused:
        spec("hermes", odd)
    assert refused.value.param == "tools[3].function.parameters.properties.a.not"
    loose = CalledTool("f", odd.parameters, strict=False, path=odd.path)
    assert takes(
        grammar(spec("hermes", loose)),
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>',
        TOKENIZER,
    )


def test_texts_in_tags_can_not_be_held_to_patterns() -> None:
    schema = {"properties": {"a": {"type": "string", "pattern": "x+"}}}
    odd = CalledTool("f", schema, strict=True, path="tools[0].function.parameters")
    with pytest.raises(RequestError) as refused:
        spec("qwen3-coder", odd)
    assert refused.value.param == "tools[0].function.parameters.properties.a.pattern"
    assert spec("hermes", odd)


def test_optional_arguments_in_tags() -> None:
    made = grammar(spec("qwen3-coder", WEATHER, required=True))
    syntax = CALLS["qwen3-coder"][1]
    assert takes(made, write_calls(syntax, [Call("get", {"place": "Oslo", "days": 2})]), TOKENIZER)
    for arguments in (
        {"place": "Oslo"},
        {"days": 2},
        {"place": "x", "days": "two"},
        {"place": "x", "days": 2, "kind": "fog"},
    ):
        assert not takes(made, write_calls(syntax, [Call("get", arguments)]), TOKENIZER)


def test_calls_or_what_a_schema_says() -> None:
    content = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    made = grammar(spec("hermes", WEATHER, content=content))
    assert takes(made, '{"a": 1}', TOKENIZER)
    assert takes(made, write_calls(CALLS["hermes"][1], [SUN]), TOKENIZER)
    assert not takes(made, "Hm.", TOKENIZER)
    assert not takes(made, '{"a": "b"}', TOKENIZER)


def test_where_nothing_marks_a_call_only_strict_tools_bind() -> None:
    assert calls_grammar(CALLS["llama-3"][1], [LOOSE], {}, required=False, several=True) is None
    made = grammar(spec("llama-3", WEATHER))
    assert takes(made, 'Say {"name": "get"}.', TOKENIZER)
    assert not takes(made, '{"name": "got", "parameters": {}}', TOKENIZER)
