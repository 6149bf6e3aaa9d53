"""What answers turn out to hold, with the faults that parsers of other servers were reported for."""

from __future__ import annotations

from itertools import pairwise

import pytest

from manylora.adapters.format.answers.events import Arguments, CallBegins, Text
from manylora.adapters.format.answers.families import CALLS, by_name
from manylora.adapters.format.answers.parser import AnswerParser
from manylora.adapters.format.answers.syntax import AnswerFormat, ReasoningSyntax
from tests.support.answers import ANY, Parsed, parse

THINK = ReasoningSyntax("<think>", "</think>")
HERMES, LISTED = by_name("hermes", THINK), by_name("smollm2")
CODER, GLM = by_name("qwen3-coder"), by_name("glm-4.5")
LLAMA, MISTRAL, NAMED = by_name("llama-3"), by_name("mistral"), by_name("mistral-named")
TYPED = {
    "f": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "list": {"type": "array", "items": {"type": "integer"}},
        "kind": {"enum": ["a", "b"]},
        "free": {},
    }
}


def test_text_before_a_call_ends_where_its_words_do() -> None:
    parsed = parse(HERMES, 'I look.\n\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>')
    assert parsed == Parsed("I look.", "", [("f", '{"a": 1}')])


def test_several_calls_and_the_space_between_them() -> None:
    one, two = '{"name": "f", "arguments": {}}', '{"name": "g", "arguments": {"x": [1]}}'
    text = f"<tool_call>\n{one}\n</tool_call>\n<tool_call>\n{two}\n</tool_call>\n"
    assert parse(HERMES, text) == Parsed("", "", [("f", "{}"), ("g", '{"x": [1]}')])


@pytest.mark.parametrize(
    "arguments",
    [
        '{"code": "if (x) { y = \\"}\\"; }"}',
        '{"a": "{", "b": "}"}',
        '{"a": "</tool_call>", "b": "<tool_call>"}',
        '{"a": {"b": {"c": []}}}',
        '{"a": "\\\\"}',
        '{ "a" :\n\t1 }',
        '{"a": "\\u007b"}',
        '{"ключ": "значение 🦊"}',
    ],
)
def test_arguments_come_out_as_they_were_written(arguments: str) -> None:
    text = f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>'
    assert parse(HERMES, text).calls == [("f", arguments)]
    assert parse(HERMES, list(text)).calls == [("f", arguments)]


@pytest.mark.parametrize(
    "call",
    ['{"name": "f"}', '{"name": "f", "arguments": {}}', '{"name": "f", "arguments": null}',
     '{"name": "f", "arguments": ""}', '{"name": "f", "arguments": "{}"}', '{"arguments": {}, "name": "f"}'],
)  # fmt: skip
def test_a_call_without_arguments_has_an_empty_object(call: str) -> None:
    assert parse(HERMES, f"<tool_call>{call}</tool_call>").calls == [("f", "{}")]


def test_arguments_that_are_the_text_of_an_object() -> None:
    text = '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"b\\"}"}</tool_call>'
    assert parse(HERMES, text).calls == [("f", '{"a": "b"}')]


def test_other_keys_and_arguments_before_the_name() -> None:
    text = '<tool_call>{"id": "x", "arguments": {"name": "no"}, "note": [{}], "name": "f"}</tool_call>'
    assert parse(HERMES, text).calls == [("f", '{"name": "no"}')]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>", "<tool_call> is a marker", "a <tool_call>\nno JSON\n</tool_call> b", "<tool_ca", "a",
        '<tool_call>{"name": 1}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', "<tool_call>[]",
        '<tool_call>{"name": "f', "</tool_call>", "{}", " lead and trail \n", "", "\n",
    ],
)  # fmt: skip
def test_what_is_no_call_is_text_and_nothing_of_it_is_lost(text: str) -> None:
    assert parse(HERMES, text) == Parsed(text)
    assert parse(HERMES, list(text)) == Parsed(text)


def test_a_call_after_something_that_only_looked_like_one() -> None:
    text = 'Say <tool_call> so: <tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert parse(HERMES, text) == Parsed("Say <tool_call> so:", "", [("f", "{}")])


def test_text_after_a_call_is_kept() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call> Done.'
    assert parse(HERMES, text) == Parsed(" Done.", "", [("f", "{}")])


def test_a_call_is_told_by_name_first_and_then_as_its_arguments_come() -> None:
    parser = AnswerParser(HERMES, ANY)
    assert parser.feed('<tool_call>{"name": "f"') == [CallBegins(0, "f")]
    told = [*parser.feed(', "arguments": {"a'), *parser.feed('": "long text')]
    assert "".join(event.text for event in told if isinstance(event, Arguments)) == '{"a": "long text'
    parser.feed('"}}</tool_call>')
    assert parser.finish() == []


def test_text_is_told_as_soon_as_it_can_be_no_marker() -> None:
    parser = AnswerParser(HERMES, ANY)
    assert parser.feed("2 <") == [Text("2")]
    assert parser.feed(" 3") == [Text(" < 3")]


def test_a_cut_call_keeps_what_came() -> None:
    whole = 'Hm. <tool_call>\n{"name": "f", "arguments": {"a": "b{c", "d": [1, 2]}}\n</tool_call>'
    for end in range(len(whole)):
        parsed = parse(HERMES, whole[:end])
        assert parsed == parse(HERMES, list(whole[:end]))
        if parsed.calls:
            assert '{"a": "b{c", "d": [1, 2]}'.startswith(parsed.calls[0][1]) or parsed.calls[0][1] == "{}"


def test_calls_beyond_the_first_are_left_out_where_one_is_wanted() -> None:
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    assert parse(HERMES, call * 3, max_calls=1) == Parsed("", "", [("f", '{"a": 1}')])
    listed = '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]</tool_call>'
    assert parse(LISTED, listed, max_calls=1).calls == [("f", "{}")]


def test_without_tools_calls_are_text() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert parse(HERMES, text, None) == Parsed(text)


@pytest.mark.parametrize("form", [HERMES, LISTED], ids=["one by one", "listed"])
def test_lists_and_single_calls_are_read_in_the_same_markers(form: AnswerFormat) -> None:
    one, two = '{"name": "f", "arguments": {"a": 1}}', '{"name": "g"}'
    calls = [("f", '{"a": 1}'), ("g", "{}")]
    assert parse(form, f"<tool_call>[{one}, {two}]</tool_call>").calls == calls
    assert parse(form, f"<tool_call> [\n{one} ,\n{two}\n] </tool_call>").calls == calls
    assert parse(form, f"<tool_call>{one}</tool_call>\n<tool_call>{two}</tool_call>").calls == calls


# Reasoning.


def test_reasoning_stands_apart() -> None:
    assert parse(HERMES, "<think>\nHm, <b>.\n</think>\n\nYes.") == Parsed("Yes.", "Hm, <b>.")
    assert parse(HERMES, "<think>\n\n</think>\n\nYes.") == Parsed("Yes.", "")
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert parse(HERMES, f"<think>{call}</think>{call}") == Parsed("", call, [("f", "{}")])


def test_reasoning_that_the_prompt_began() -> None:
    assert parse(HERMES, "Hm.\n</think>\nYes.", in_reasoning=True) == Parsed("Yes.", "Hm.")
    assert parse(HERMES, "Hm.</think>", in_reasoning=True) == Parsed("", "Hm.")


def test_reasoning_that_does_not_end() -> None:
    assert parse(HERMES, "<think>Hm. </thi") == Parsed("", "Hm. </thi")
    parser = AnswerParser(HERMES, ANY)
    parser.feed("<think>Hm.")
    parser.finish()
    assert parser.in_reasoning


@pytest.mark.parametrize("text", ["a <think>b</think>", "</think>", "<thin", "<think"])
def test_markers_elsewhere_are_text(text: str) -> None:
    assert parse(HERMES, text) == Parsed(text)


# Other families.


def test_llama() -> None:
    call = '{"name": "f", "parameters": {"a": "b"}}'
    assert parse(LLAMA, call).calls == [("f", '{"a": "b"}')]
    assert parse(LLAMA, f"<|python_tag|>{call}").calls == [("f", '{"a": "b"}')]
    assert parse(LLAMA, f'{call}; {{"name": "g", "parameters": {{}}}}').calls == [
        ("f", '{"a": "b"}'),
        ("g", "{}"),
    ]
    for text in ('{"name": "other", "parameters": {}}', '{"a": 1}', "{", f"Here: {call}", "[1]"):
        assert parse(LLAMA, text) == Parsed(text)
        assert parse(LLAMA, list(text)) == Parsed(text)


def test_other_objects_are_not_held_back_to_their_end() -> None:
    parser = AnswerParser(LLAMA, ANY)
    assert parser.feed('{"city": "Os') == [Text('{"city": "Os')]


def test_mistral() -> None:
    text = '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"}, {"name": "g"}]'
    assert parse(MISTRAL, text).calls == [("f", '{"a": 1}'), ("g", "{}")]
    text = '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}'
    assert parse(NAMED, text).calls == [("f", '{"a": 1}'), ("g", "{}")]
    assert parse(NAMED, "[TOOL_CALLS] are calls") == Parsed("[TOOL_CALLS] are calls")


def _coder(**arguments: str) -> str:
    written = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
    return f"<tool_call>\n<function=f>\n{written}</function>\n</tool_call>"


def test_tagged_values_get_their_types_from_the_schema() -> None:
    text = _coder(text="5", count="5", maybe="null", list="[1, 2]", kind="a", free='{"x": 1}')
    assert parse(CODER, text, TYPED).read == [
        ("f", {"text": "5", "count": 5, "maybe": None, "list": [1, 2], "kind": "a", "free": {"x": 1}})
    ]


@pytest.mark.parametrize("value", ["a\nb", ' "quoted" ', "{", "<b>", "\\n", "</param", "\n", "", "🦊"])
def test_tagged_texts_come_out_as_they_were_written(value: str) -> None:
    text = _coder(text=value)
    assert parse(CODER, text, TYPED).read == [("f", {"text": value})]
    assert parse(CODER, list(text), TYPED).read == [("f", {"text": value})]


def test_tagged_texts_are_told_as_they_come() -> None:
    parser = AnswerParser(CODER, TYPED)
    parser.feed("<tool_call>\n<function=f>\n<parameter=text>\n")
    assert parser.feed('say "hi"') == [Arguments(0, 'say \\"hi\\"')]


def test_a_tagged_call_without_arguments() -> None:
    assert parse(CODER, _coder(), TYPED).calls == [("f", "{}")]
    assert parse(GLM, "<tool_call>f\n</tool_call>", TYPED).calls == [("f", "{}")]
    text = "<tool_call>f\n<arg_key>count</arg_key>\n<arg_value>7</arg_value>\n</tool_call>"
    assert parse(GLM, text, TYPED).read == [("f", {"count": 7})]


def test_markers_of_families_are_told_apart() -> None:
    triggers = [syntax.trigger for _, syntax in CALLS.values()]
    assert all(trigger == trigger.strip() for trigger in triggers)
    assert [name for name, (_, syntax) in CALLS.items() if not syntax.trigger] == ["llama-3"]
    words = [words for words, _ in CALLS.values()]
    for first, second in pairwise(words):
        assert set(first) != set(second)


def test_deeply_nested_arguments_end_the_call_and_not_the_server() -> None:
    deep = '{"a":' * 5000
    parsed = parse(HERMES, f'<tool_call>{{"name": "f", "arguments": {deep}')
    assert parsed.calls[0][0] == "f"
    assert parsed.text
