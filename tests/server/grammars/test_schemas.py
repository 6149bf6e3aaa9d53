"""JSON schemas over every keyword: answers are valid, valid instances never cut off, others refused."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import jsonschema
import pytest

from manylora.server.errors import RequestError
from manylora.server.grammars.grammar import CompiledGrammar
from manylora.server.grammars.schemas import SchemaRefused, prepare_schema, subschemas
from manylora.server.grammars.spec import GrammarSpec, JsonStyle
from tests.support.grammars import (
    allowed,
    compiled,
    grammar,
    refusal,
    spellings,
    takes,
    tokenizer_of_bytes,
    walk,
)
from tests.support.json_schemas import KEPT, REFUSED, I, Kept, closed

PARAM = "response_format.json_schema.schema"
TOKENIZER = tokenizer_of_bytes()


def spec_of(schema: Any, **style: Any) -> GrammarSpec:
    return GrammarSpec.json_schema(schema, param=PARAM, style=JsonStyle(**style))


@pytest.fixture(scope="module")
def grammars() -> dict[str, CompiledGrammar]:
    made = compiled([spec_of(case.schema) for case in KEPT], TOKENIZER)
    refused = [
        (case.name, str(each))
        for case, each in zip(KEPT, made, strict=True)
        if isinstance(each, RequestError)
    ]
    assert not refused
    return {
        case.name: each for case, each in zip(KEPT, made, strict=True) if isinstance(each, CompiledGrammar)
    }


def check(schema: Any, instance: Any) -> None:
    jsonschema.Draft202012Validator(schema).validate(instance)


def test_there_are_a_hundred_schemas_and_more() -> None:
    assert len(KEPT) + len(REFUSED) >= 130
    assert len({case.name for case in KEPT}) == len(KEPT)


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case.name)
def test_valid_instances_are_never_cut_off(case: Kept, grammars: dict[str, CompiledGrammar]) -> None:
    for instance in case.valid:
        check(case.schema, instance)
        for text in spellings(instance):
            assert takes(grammars[case.name], text, TOKENIZER), text


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case.name)
def test_random_answers_are_valid(case: Kept, grammars: dict[str, CompiledGrammar]) -> None:
    """Bytes drawn evenly of those that are allowed go everywhere that a model can be led to."""
    ended = 0
    for seed in range(3):
        text = walk(grammars[case.name], seed, TOKENIZER, most=400)
        if text is not None:
            check(case.schema, json.loads(text))
            ended += 1
    assert ended or case.name in ("string", "anything", "true", "many properties"), (
        "no answer came to its end"
    )


@pytest.mark.parametrize(("schema", "path"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_kept_is_refused_by_its_path(schema: Any, path: str) -> None:
    error = refusal(spec_of(schema), TOKENIZER)
    assert error.param == f"{PARAM}{path}"
    assert error.code == "invalid_grammar"
    assert f"'{PARAM}{path}'" in str(error)


def test_lenient_schemas_are_kept_as_far_as_they_can_be() -> None:
    schema = closed(
        {
            "tags": {"type": "array", "items": I, "uniqueItems": True, "maxItems": 2},
            "n": {"oneOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 9}]},
        }
    )
    made = grammar(spec_of(schema, lenient=True), TOKENIZER)
    assert made.left_out == (".properties.tags.uniqueItems",)
    assert takes(made, '{"tags": [1, 1], "n": 3}', TOKENIZER)
    assert not takes(made, '{"tags": ["a"], "n": 3}', TOKENIZER)


def test_objects_are_closed_if_asked_to() -> None:
    schema = {"type": "object", "properties": {"a": {"properties": {"b": I}}, "c": {"type": "object"}}}
    open_, shut = compiled([spec_of(schema), spec_of(schema, closed=True)], TOKENIZER)
    assert isinstance(open_, CompiledGrammar)
    assert isinstance(shut, CompiledGrammar)
    for text, only_open in (
        ('{"a":{"b":1}}', False),
        ('{"x":1}', True),
        ('{"a":{"x":1}}', True),
        ('{"c":{"x":1}}', False),
    ):
        assert takes(open_, text, TOKENIZER)
        assert takes(shut, text, TOKENIZER) is not only_open


def test_blanks() -> None:
    schema = closed({"a": I, "b": I})
    some, none, own = (
        grammar(spec_of(schema, **style), TOKENIZER)
        for style in ({}, {"compact": True}, {"whitespace_pattern": " "})
    )
    compact, spaced, lines = '{"a":1,"b":2}', '{ "a" : 1 , "b" : 2 }', '{\n  "a": 1,\n  "b": 2\n}'
    assert [takes(some, text, TOKENIZER) for text in (compact, spaced, lines)] == [True, True, True]
    assert [takes(none, text, TOKENIZER) for text in (compact, spaced, lines)] == [True, False, False]
    assert [takes(own, text, TOKENIZER) for text in (compact, spaced, lines)] == [True, True, False]


@pytest.mark.parametrize("before", ["{", '{"a"', '{"a":', '{"a":1', '{"a":1,'])
def test_blanks_have_an_end(before: str) -> None:
    """A model that writes nothing else goes on after 80 of them."""
    made = grammar(spec_of(closed({"a": I, "b": I})), TOKENIZER)
    state = made.start()
    state.take([])
    state.take(TOKENIZER.encode(before, add_special_tokens=False))
    blanks = TOKENIZER.encode(" \n\t\r", add_special_tokens=False)
    for place in range(80):
        assert set(blanks) < allowed(state)
        state.take([blanks[place % 4]])
    assert allowed(state)
    assert not allowed(state) & set(blanks)


@pytest.mark.parametrize("multiple", ["0.25", "0.5", "0.05", "0.3", "0.075", "1.2", "2.5", "0.0001", "12.8"])
def test_multiples_with_decimals_are_written_as_they_come(multiple: str) -> None:
    """With all decimals or without zeros at the end; nothing else is taken."""
    step, rng = Decimal(multiple), random.Random(multiple)
    made = grammar(spec_of({"type": ["number", "null"], "multipleOf": float(multiple)}), TOKENIZER)
    numbers = [step * rng.randrange(-400, 400) for _ in range(20)]
    others = [number + rng.choice([step / 2, step / 10]) for number in numbers]
    for number in (*numbers, *others):
        shortest = f"{number.normalize():f}"
        assert takes(made, shortest, TOKENIZER) == (number % step == 0), shortest
        full = f"{number:.{-int(step.as_tuple().exponent)}f}"
        assert takes(made, full, TOKENIZER) == (Decimal(full) % step == 0), full
    assert takes(made, "null", TOKENIZER)


def test_what_looks_like_a_multiple_stays() -> None:
    value = {"const": {"type": "number", "multipleOf": 0.25}}
    assert takes(grammar(spec_of(value), TOKENIZER), json.dumps(value["const"]), TOKENIZER)
    names = closed({"multipleOf": {"type": "number", "multipleOf": 0.25}})
    assert takes(grammar(spec_of(names), TOKENIZER), '{"multipleOf": 1.5}', TOKENIZER)


def test_usual_formatting_fits() -> None:
    value: Any = 1
    for level in range(19):
        value = [value] if level % 2 else {"k": value}
    made = grammar(GrammarSpec.json_object(param="p"), TOKENIZER)
    for indent in (None, 2, 4, "\t"):
        assert takes(made, json.dumps(value, indent=indent), TOKENIZER)


def test_preparing_changes_nothing_of_the_clients_schema() -> None:
    schema = closed({"a": {"deprecated": True, "type": "integer"}}, unevaluatedProperties=False)
    before = json.dumps(schema)
    prepare_schema(schema, closed=True, lenient=True)
    assert json.dumps(schema) == before


def test_schemas_inside_of_schemas() -> None:
    schema: Any = {
        "properties": {"a": {"anyOf": [{}, {"items": {}}]}},
        "$defs": {"x": True},
        "enum": [{"items": {}}],
    }
    paths = [path for path, _ in subschemas(schema)]
    assert paths == ["", ".properties.a", ".properties.a.anyOf[0]", ".properties.a.anyOf[1]",
                     ".properties.a.anyOf[1].items", ".$defs.x"]  # fmt: skip


def test_depth_is_bounded() -> None:
    schema: Any = {}
    for _ in range(100):
        schema = {"items": schema}
    with pytest.raises(SchemaRefused, match="deep"):
        prepare_schema(schema)
