"""Calls in answers over HTTP: whole, streamed, and cut anywhere."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.scripted import Scripted, gathered
from tests.support.tool_requests import CALL, TOOLS, TWO, calls_of, without_ids

pytestmark = pytest.mark.slow


def test_calls(server: Scripted) -> None:
    answer = server.ask(TWO, tools=TOOLS)
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "Let me see."
    assert calls_of(choice) == [("weather", {"place": "Oslo {N}"}), ("time", {})]
    assert choice["finish_reason"] == "tool_calls"
    ids = [call["id"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(id_.startswith("call_") for id_ in ids)
    assert [call["type"] for call in choice["message"]["tool_calls"]] == ["function"] * 2


def test_a_call_alone_has_no_content(server: Scripted) -> None:
    (choice,) = server.ask(CALL, tools=TOOLS)["choices"]
    assert choice["message"]["content"] is None
    (choice,) = gathered(server.stream(CALL, tools=TOOLS))
    assert choice["message"]["content"] is None


def test_an_answer_without_calls(server: Scripted) -> None:
    for text in ("No.", ""):
        answer = server.ask(text, tools=TOOLS)["choices"][0]
        assert answer["message"]["content"] == text
        assert "tool_calls" not in answer["message"]
        assert answer["finish_reason"] == "stop"
        assert without_ids(gathered(server.stream(text, tools=TOOLS))[0]) == without_ids(answer)


@pytest.mark.parametrize(
    ("model", "text"),
    [("tiny", TWO), ("coder", "<tool_call>\n<function=weather>\n<parameter=place>\nOslo\n</parameter>\n"
                     "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"),
     ("thinking", f"<think>\nHm.\n</think>\n\n{CALL}"), ("tiny", "Not <tool_call> so\n ")],
)  # fmt: skip
def test_streams_add_up_to_whole_answers_wherever_they_are_cut(
    server: Scripted, model: str, text: str
) -> None:
    length = len(text.encode())
    for cut in [*range(5, length, 17), length, length + 1]:
        body = {"model": model, "tools": TOOLS, "max_tokens": cut, "stream_options": {"include_usage": True}}
        chunks = server.stream(text, **body)
        whole = server.ask(text, **body)
        assert [without_ids(choice) for choice in gathered(chunks)] == [
            without_ids(choice) for choice in whole["choices"]
        ]
        assert chunks[-1]["usage"] == {
            **whole["usage"],
            "prompt_tokens_details": chunks[-1]["usage"]["prompt_tokens_details"],
        }
        (choice,) = whole["choices"]
        ended = cut == length + 1
        called = bool(choice["message"].get("tool_calls"))
        assert choice["finish_reason"] == (("tool_calls" if called else "stop") if ended else "length")


def test_arguments_come_as_they_are_written(server: Scripted) -> None:
    chunks = server.stream(CALL, tools=TOOLS)
    deltas = [entry["delta"] for chunk in chunks for entry in chunk["choices"]]
    called = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert called[0]["function"] == {"name": "weather", "arguments": ""}
    assert called[0]["id"]
    pieces = [part["function"]["arguments"] for part in called[1:]]
    assert len(pieces) > 10
    assert "".join(pieces) == '{"place": "Oslo {N}"}'


def test_several_choices_have_calls_of_their_own(server: Scripted) -> None:
    answer = server.ask(TWO, tools=TOOLS, n=3)
    assert [len(calls_of(choice)) for choice in answer["choices"]] == [2, 2, 2]
    ids = {call["id"] for choice in answer["choices"] for call in choice["message"]["tool_calls"]}
    assert len(ids) == 6


def test_a_stop_string_within_a_call(server: Scripted) -> None:
    body: dict[str, Any] = {"tools": TOOLS, "stop": ["Oslo"]}
    (choice,) = server.ask(CALL, **body)["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"place": "'
    assert without_ids(gathered(server.stream(CALL, **body))[0]) == without_ids(choice)


def test_logprobs_and_token_ids_of_calls(server: Scripted) -> None:
    body: dict[str, Any] = {"tools": TOOLS, "logprobs": True, "return_token_ids": True}
    (choice,) = server.ask(CALL, **body)["choices"]
    count = len(CALL.encode()) + 1
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"]) == count
    chunks = [entry for chunk in server.stream(CALL, **body) for entry in chunk["choices"]]
    assert sum(len((entry["logprobs"] or {"content": []})["content"]) for entry in chunks) == count
    assert sum(len(entry["token_ids"]) for entry in chunks) == count


def test_official_client(server: Scripted) -> None:
    server.text, server.tokens = TWO, None
    with server.running.client().chat.completions.stream(
        model="tiny",
        messages=[{"role": "user", "content": "Hi"}],
        tools=TOOLS,  # type: ignore[arg-type]
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ["weather", "time"]
    assert [event.name for event in events if event.type == "tool_calls.function.arguments.done"] == [
        "weather",
        "time",
    ]
