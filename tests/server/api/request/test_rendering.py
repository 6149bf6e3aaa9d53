"""What a conversation's fields do depends on its chat template: they reach it, or the client is told."""

from __future__ import annotations

from typing import Any

import pytest

from manylora.server.api.request.schemas import Message, sift_messages
from manylora.server.api.request.token_ids import Rendering
from manylora.server.errors import RequestError
from manylora.server.model.text.conventions import TextConventions
from manylora.server.model.text.tokenizer import Tokenizer
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer

TOOLS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{% endfor %}"
)
NO_RESULTS = TOOLS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
SWITCH = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<no>{% endif %}"
    "{% if reasoning_effort is defined %}{{ reasoning_effort }}{% endif %}"
)
TRIMMING = "{% for m in messages %}[{{ m.content | trim }}]\n{% endfor %}"
LAST_LEFT_OUT = "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}."

QUESTION = {"role": "user", "content": "Weather?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"place": "Oslo"}'}}
CALLING: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sun"}


def conventions(template: str) -> TextConventions:
    hf = byte_tokenizer()
    hf.chat_template = template
    return TextConventions(Tokenizer(hf))


async def render(template: str, *messages: dict[str, Any], **how: Any) -> tuple[str, list[str]]:
    """The text of a conversation as a client sends it, and what of it the template ignores."""
    ignored: list[str] = []
    given = [Message.model_validate(each).for_template() for each in sift_messages(list(messages))]
    text = await Rendering(**how).render(conventions(template), given, ignored)
    return text, ignored


async def test_calls_of_tools_and_their_results_are_written() -> None:
    text, ignored = await render(TOOLS, QUESTION, CALLING, RESULT)
    assert text == '[user]Weather?[assistant]<look {"place": "Oslo"}>[tool]sun'
    assert ignored == []


@pytest.mark.parametrize("content", [None, "", []])
async def test_a_turn_with_calls_needs_no_content(content: object) -> None:
    with_content = await render(TOOLS, QUESTION, {**CALLING, "content": content})
    without = {key: value for key, value in CALLING.items() if key != "content"}
    assert with_content == await render(TOOLS, QUESTION, without)


@pytest.mark.parametrize("arguments", ['{"place": "Oslo"}', {"place": "Oslo"}])
async def test_arguments_come_as_text_or_as_an_object(arguments: object) -> None:
    call = {"function": {"name": "look", "arguments": arguments}, "index": 0}
    text, _ = await render(TOOLS, {**CALLING, "tool_calls": [call]})
    assert text == '[assistant]<look {"place": "Oslo"}>'


@pytest.mark.parametrize("arguments", ["", "  ", "{}", {}])
async def test_no_arguments(arguments: object) -> None:
    call = {"function": {"name": "look", "arguments": arguments}}
    assert (await render(TOOLS, {**CALLING, "tool_calls": [call]}))[0] == "[assistant]<look {}>"


async def test_calls_that_the_template_would_leave_out_are_refused() -> None:
    with pytest.raises(RequestError) as refused:
        await render(CHAT_TEMPLATE, QUESTION, CALLING)
    assert refused.value.param == "messages[1].tool_calls"


async def test_results_that_the_template_would_leave_out_are_refused() -> None:
    with pytest.raises(RequestError) as refused:
        await render(NO_RESULTS, QUESTION, CALLING, RESULT)
    assert refused.value.param == "messages[2].role"


async def test_reasoning_of_earlier_turns() -> None:
    turn = {"role": "assistant", "content": "Sun.", "reasoning_content": "hm"}
    assert await render(TOOLS, QUESTION, turn) == ("[user]Weather?[assistant]Sun.(hm)", [])
    text, ignored = await render(CHAT_TEMPLATE, QUESTION, turn)
    assert "hm" not in text
    assert ignored == ["messages[1].reasoning_content"]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TOOLS])
@pytest.mark.parametrize(
    "field",
    [
        {"id": "msg_1"},
        {"name": ""},
        {"annotations": [{"type": "url_citation"}]},
        {"refusal": ""},
        {"audio": None},
        {"tool_calls": []},
        {"tool_calls": None},
        {"cache_control": {"type": "ephemeral"}},
        {"weight": 0},
        {"content": [{"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}}]},
        {"content": [{"type": "text", "text": "Weather?", "prompt_cache_breakpoint": {"mode": "explicit"}}]},
    ],
    ids=str,
)
async def test_what_clients_add_to_messages_changes_nothing(template: str, field: dict[str, Any]) -> None:
    assert await render(template, {**QUESTION, **field}) == await render(template, QUESTION)


async def test_variables_reach_a_template_that_reads_them() -> None:
    off = {"chat_template_kwargs.enable_thinking": {"enable_thinking": False}}
    assert await render(SWITCH, QUESTION, variables=off) == ("Weather?<no>", [])
    effort = {"reasoning_effort": {"reasoning_effort": "low", "enable_thinking": True}}
    assert await render(SWITCH, QUESTION, variables=effort) == ("Weather?low", [])


async def test_variables_that_nothing_reads_are_told_one_by_one() -> None:
    variables = {
        "chat_template_kwargs.enable_thinking": {"enable_thinking": False},
        "chat_template_kwargs.a": {"a": 1},
        "verbosity": {"verbosity": "low"},
    }
    text, ignored = await render(SWITCH, QUESTION, variables=variables)
    assert text == "Weather?<no>"
    assert ignored == ["chat_template_kwargs.a", "verbosity"]
    _, ignored = await render(CHAT_TEMPLATE, QUESTION, variables=variables)
    assert ignored == list(variables)


@pytest.mark.parametrize("content", ["The sky is", "end", "im_end", "<|im_end|>", "user", "a\n", " b ", "]"])
async def test_a_message_that_goes_on_ends_in_its_own_text(content: str) -> None:
    """Also where that text occurs in what the template writes behind it."""
    turn = {"role": "assistant", "content": content}
    text, _ = await render(CHAT_TEMPLATE, QUESTION, turn, continue_final_message=True)
    assert text == f"<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n{content}"


async def test_a_template_that_trims() -> None:
    turn = {"role": "assistant", "content": " The sky"}
    text, _ = await render(TRIMMING, QUESTION, turn, continue_final_message=True)
    assert text == "[Weather?]\n[The sky"


@pytest.mark.parametrize("turn", [CALLING, {"role": "assistant", "content": ""}], ids=["calls", "empty"])
async def test_what_can_not_go_on(turn: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        await render(TOOLS, QUESTION, turn, continue_final_message=True)
    assert refused.value.param == "messages[1].content"


async def test_a_template_that_leaves_the_last_message_out() -> None:
    with pytest.raises(RequestError) as refused:
        await render(LAST_LEFT_OUT, QUESTION, QUESTION, continue_final_message=True)
    assert refused.value.param == "continue_final_message"
