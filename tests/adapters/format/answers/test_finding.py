"""Formats as they are found: in a response template, in what a template writes, in the words of a family."""

from __future__ import annotations

import json
from typing import Any

import pytest

from manylora.adapters.format.answers.differences import derive_calls
from manylora.adapters.format.answers.finding import find_format
from manylora.adapters.format.answers.samples import render_samples
from manylora.adapters.format.answers.syntax import (
    AnswerFormat,
    CallSyntax,
    IdForm,
    ReasoningSyntax,
    Shape,
    Source,
    Tags,
)
from manylora.adapters.format.answers.writing import describe
from tests.support import tool_templates as templates
from tests.support.answers import parse
from tests.support.tiny_models import CHAT_TEMPLATE

THINK = ReasoningSyntax("<think>", "</think>")
HERMES = CallSyntax(Shape.OBJECT, open="<tool_call>\n", close="\n</tool_call>", separator="\n")


def find(template: str | None, response_template: Any = None) -> AnswerFormat:
    return find_format(
        template, response_template, lambda text: render_samples({"template": text, "special": {}})
    )


DERIVED: dict[str, tuple[str, CallSyntax]] = {
    "hermes": (templates.HERMES, HERMES),
    "thinking": (templates.THINKING, HERMES),
    "opened": (templates.OPENED, HERMES),
    "listed": (
        templates.LISTED,
        CallSyntax(Shape.OBJECT, begin="<tool_call>", end="</tool_call>", separator=", ", listed=True),
    ),
    "coder": (
        templates.CODER,
        CallSyntax(
            Shape.TAGGED,
            open="<tool_call>\n<function=",
            close="</function>\n</tool_call>",
            separator="\n",
            name_end=">\n",
            tags=Tags("<parameter=", ">\n", "\n</parameter>\n"),
        ),
    ),
    "mistral": (
        templates.MISTRAL,
        CallSyntax(Shape.OBJECT, begin="[TOOL_CALLS]", separator=", ", listed=True, ids=IdForm.NINE),
    ),
    "mistral-named": (
        templates.MISTRAL_NAMED,
        CallSyntax(Shape.NAMED, open="[TOOL_CALLS]", name_end="[ARGS]"),
    ),
    "granite": (
        templates.GRANITE,
        CallSyntax(Shape.OBJECT, begin="<|tool_call|>", separator=", ", listed=True),
    ),
    "deepseek": (
        templates.DEEPSEEK,
        CallSyntax(
            Shape.NAMED,
            begin="<｜tool▁calls▁begin｜>",
            end="<｜tool▁calls▁end｜>",
            open="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            close="\n```<｜tool▁call▁end｜>",
            separator="\n",
            name_end="\n```json\n",
        ),
    ),
    "wrapped": (
        templates.WRAPPED,
        CallSyntax(Shape.OBJECT, open="<call>", close="</call>", wrap_key="function"),
    ),
    "strange": (templates.STRANGE, CallSyntax(Shape.OBJECT, open="@@run ", close=" done@@")),
}


@pytest.mark.parametrize("name", DERIVED)
def test_formats_by_what_templates_write(name: str) -> None:
    template, expected = DERIVED[name]
    found = find(template)
    assert found.source is Source.DIFFERENCES
    assert found.calls == expected


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_what_a_template_writes_is_read(name: str) -> None:
    """One call and two, after text and without, as the template itself writes them."""
    template = templates.TEMPLATES[name]
    form = find(template)
    assert form.calls is not None
    renderings = render_samples({"template": template, "special": {}})
    tools = {each: {"qzkeyqz": {"type": "string"}} for each in ("qzfirstqz", "qzsecondqz")}
    read = []
    for each in ("one", "said_one", "two", "said_two"):
        whole, prompt = renderings[each], renderings["prompt"]
        if whole is None or prompt is None or (not form.calls.trigger and each.startswith("said")):
            continue
        answer = whole.removeprefix(prompt)
        parsed = parse(form, answer, tools, in_reasoning=prompt.endswith("<think>\n"))
        expected = [("qzfirstqz", {"qzkeyqz": "qz value a"}), ("qzsecondqz", {"qzkeyqz": "qz value b"})]
        assert parsed.read == expected[: 1 + each.endswith("two")]
        read.append(each)
    assert "one" in read


def test_reasoning() -> None:
    assert find(templates.THINKING).reasoning == THINK
    assert find(templates.OPENED).reasoning == THINK
    assert find(templates.HERMES).reasoning is None
    other = templates.THINKING.replace("<think>", "<|channel>thought").replace("</think>", "<channel|>")
    assert find(other).reasoning == ReasoningSyntax("<|channel>thought", "<channel|>")


def test_llama_is_told_by_its_words() -> None:
    """What it writes has no marker; that one may stand before it, only the family knows."""
    found = find(templates.LLAMA)
    assert found.source is Source.FAMILY
    assert found.calls is not None
    assert found.calls.optional == "<|python_tag|>"
    derived = derive_calls(render_samples({"template": templates.LLAMA, "special": {}}))
    assert derived == CallSyntax(Shape.OBJECT, arguments_key="parameters", several=False)


@pytest.mark.parametrize(
    "template", [None, CHAT_TEMPLATE, templates.DEAF, templates.BARE, "{{ x.y.z }}", "{% if"]
)
def test_no_format(template: str | None) -> None:
    if template == "{% if":
        template = "{{ raise_exception('never') }}"
    found = find(template)
    assert found.calls is None
    assert describe(found)["calls"] is None


def test_a_family_whose_template_leaves_calls_to_its_readers() -> None:
    told = templates.chatml("", head="Answer <tool_call>{...}</tool_call> {{ tools | tojson if tools }}")
    found = find(told)
    assert found.source is Source.FAMILY
    assert found.calls == HERMES


def test_how_it_is_shown() -> None:
    assert describe(find(templates.THINKING)) == {
        "source": "differences",
        "calls": '<tool_call>\n{"name": "NAME", "arguments": {"KEY": "VALUE"}}\n</tool_call>',
        "reasoning": "<think>…</think>",
    }
    assert json.dumps(describe(find(templates.CODER)))


# Response templates.

QWEN: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>)", "content": "text"},
    },
}


def with_calls(**calls: Any) -> dict[str, Any]:
    return {**QWEN, "fields": {"tool_calls": calls}}


FUNCTION = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
READ: dict[str, tuple[dict[str, Any], str]] = {
    "an object": (QWEN, '<tool_call>{"name": "f", "arguments": {"a": "1"}}</tool_call>'),
    "other keys": (
        with_calls(
            open="<c>", close="</c>", repeats=True, content="json",
            transform={"function": {"name": "{content.tool}", "arguments": "{content.args}"}},
        ),
        '<c>{"tool": "f", "args": {"a": "1"}}</c>',
    ),
    "a list": (
        with_calls(
            open="[TOOL_CALLS]", content="json", transform_each=True,
            transform={"function": {"name": "{name}", "arguments": "{parameters}"}},
        ),
        '[TOOL_CALLS][{"name": "f", "parameters": {"a": "1"}}]',
    ),
    "a name before": (
        with_calls(
            open_pattern=r"<\|call\|>(?P<name>\w+)\s*", close="<|end|>", repeats=True, content="json",
            transform=FUNCTION,
        ),
        '<|call|>f {"a": "1"}<|end|>',
    ),
    "tags": (
        with_calls(
            open_pattern=r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            close_pattern=r"</function>\s*</tool_call>",
            repeats=True,
            content="xml-inline",
            content_args={"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
            transform=FUNCTION,
        ),
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_formats_that_come_with_a_tokenizer(name: str) -> None:
    spec, text = READ[name]
    found = find(CHAT_TEMPLATE, spec)
    assert found.source is Source.RESPONSE_TEMPLATE
    assert found.note is None
    assert parse(found, text, {"f": {"a": {"type": "string"}}}).read == [("f", {"a": "1"})]


def test_it_counts_before_the_template() -> None:
    spec = with_calls(open="<c>", close="</c>", content="json", transform={"function": "{content}"})
    found = find(templates.HERMES, spec)
    assert found.calls is not None
    assert (found.calls.open, found.calls.several, found.reasoning) == ("<c>", False, None)


@pytest.mark.parametrize(
    "spec",
    [
        "x", {}, {"fields": []}, {"fields": {"tool_calls": 1}}, {**QWEN, "version": 2},
        with_calls(open="<c>", content="kv-lines"),
        with_calls(open="<c>", content="json", content_args={"unquoted_keys": True}),
        with_calls(open_pattern="(a+)+$", close="x", content="json"),
        with_calls(open_pattern="[", close="x", content="json"),
        with_calls(open=["<a>", "<b>"], content="json"),
        with_calls(open="x" * 1000, content="json"),
        with_calls(open="<c>", content="json", transform={"function": {"name": "f", "arguments": "{a}"}}),
        with_calls(open_pattern="<(?P<name>[^>]+)>", content="xml-inline", transform=FUNCTION),
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_told_and_the_template_counts(spec: Any) -> None:
    found = find(templates.HERMES, spec)
    assert found.calls == HERMES
    assert found.source is Source.DIFFERENCES
    assert "response_template is not used" in str(found.note)
    assert found.digest == find(templates.HERMES).digest
