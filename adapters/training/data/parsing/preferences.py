"""Rows of two answers of which one is better: OpenAI's, and every shape of chosen and rejected."""

from __future__ import annotations

import re
from typing import Any

from manylora.adapters.training.data.parsing.conversations import joined_question
from manylora.adapters.training.data.parsing.messages import Parsed, parse_messages
from manylora.adapters.training.data.parsing.record import Record
from manylora.adapters.training.data.parsing.tools import parse_tools, read_tools
from manylora.adapters.training.data.rows import Messages, PreferenceRow, Row

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")  # of a conversation as one text (Anthropic's hh-rlhf)
_SAME = "the preferred and the other answer are the same, so there is nothing to learn"
_PROMPTS = ("prompt", "messages", "conversations", "question")


def openai_preference(record: Record) -> Row | None:
    """``{"input": {"messages": ...}, "preferred_output": [...], "non_preferred_output": [...]}``."""
    given = record.get("input")
    if not isinstance(given, dict):
        record.say("input: must be an object with messages")
        return None
    prompt = parse_messages(given.get("messages"), record, "input.messages")
    tools = read_tools(given.get("tools"), record, "input.tools")
    sides = [_side(record, name) for name in ("preferred_output", "non_preferred_output")]
    if prompt is None or tools is None or sides[0] is None or sides[1] is None:
        return None
    names = ("preferred_output", "non_preferred_output")
    return _row(record, prompt.messages, (sides[0].messages, sides[1].messages), names, tools, shared=0)


def chosen_rejected(record: Record) -> Row | None:
    """Two answers, or two conversations that begin alike, in ``chosen`` and ``rejected``."""
    tools, system = parse_tools(record), record.optional_text("system")
    chosen, rejected = _side(record, "chosen"), _side(record, "rejected")
    if tools is None or system is None or chosen is None or rejected is None:
        return None
    if chosen.messages == rejected.messages:
        record.say(_SAME)
        return None
    shared = _shared(chosen.messages, rejected.messages)
    prompt = _prompt(record, chosen.messages[:shared])
    if prompt is None:
        return None
    if system and prompt[0]["role"] != "system":
        prompt = ({"role": "system", "content": system}, *prompt)
    rest = (chosen.messages[shared:], rejected.messages[shared:])
    return _row(record, prompt, rest, ("chosen", "rejected"), tools, shared=shared)


def _side(record: Record, name: str) -> Parsed | None:
    """An answer, or a conversation that ends with it: text, one message or a list of them."""
    value: Any = record.get(name)
    if isinstance(value, dict) and not all(isinstance(item, list) for item in value.values()):
        value = [value]
    elif isinstance(value, str) and value.lstrip()[:1] != "[":
        value = _transcript(value) or [{"role": "assistant", "content": value}]
    elif isinstance(value, str):  # an answer may begin with a bracket as well as JSON
        parsed = parse_messages(value, _quiet(record), record.name(name))
        value = value if parsed is not None else [{"role": "assistant", "content": value}]
    return parse_messages(value, record, record.name(name))


def _quiet(record: Record) -> Record:
    return Record(record.value, record.origin, record.layout, lambda _: None, record.notes, record.used)


def _transcript(text: str) -> list[dict[str, str]]:
    """The turns of a conversation that is one text; none where it is not."""
    if _SPEAKER.match(text) is None:
        return []
    parts = _SPEAKER.split(text)[1:]
    return [
        {"role": who.lower(), "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _shared(one: Messages, other: Messages) -> int:
    """How many turns both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _prompt(record: Record, shared: Messages) -> Messages | None:
    """What both answers follow: the beginning that they share, or the row's prompt where they share none."""
    given = _given_prompt(record) if not shared or record.get("prompt") is not None else ()
    if given is None or not (given or shared):
        if given is not None:
            record.say("chosen, rejected: share no beginning and there is no prompt: add one")
        return None
    if not shared:
        return given
    if given and given != shared[-len(given) :] and given[-len(shared) :] != shared:
        record.note(
            f"{record.name('prompt')}: not how the conversations begin; the beginning they share is taken"
        )
        return shared
    return given if len(given) > len(shared) else shared


def _given_prompt(record: Record) -> Messages | None:
    """The prompt of the row's own fields; () where there is none, None where it is faulty."""
    for field in _PROMPTS:
        value = record.get(field)
        if value is None or value == "":
            continue
        if isinstance(value, str) and value.lstrip()[:1] != "[":
            value = _transcript(value) or [{"role": "user", "content": value}]
        parsed = parse_messages(value, record, record.name(field))
        return None if parsed is None else parsed.messages
    if record.get("instruction") is None and record.get("input") is None:
        return ()
    question = joined_question(record)
    return None if question is None else ({"role": "user", "content": question},)


def _row(
    record: Record,
    prompt: Messages,
    answers: tuple[Messages, Messages],
    names: tuple[str, str],
    tools: Any,
    *,
    shared: int,
) -> Row | None:
    after = f" after the {shared} turns that both share" if shared else ""
    if answers[0] == answers[1]:
        record.say(_SAME)
        return None
    for name, turns in zip(names, answers, strict=True):
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            record.say(f"{record.name(name)}: must be exactly one assistant message{after}")
            return None
    if prompt[-1]["role"] == "assistant":
        record.say("the prompt must not end with an assistant turn: both answers follow it")
        return None
    return PreferenceRow(record.origin, prompt, answers[0][0], answers[1][0], tools)
