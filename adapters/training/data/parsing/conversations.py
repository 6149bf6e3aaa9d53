"""Rows of one conversation or text to learn: messages, ShareGPT, Alpaca, prompt and completion, text."""

from __future__ import annotations

from typing import Any

from manylora.adapters.format.faults import shown
from manylora.adapters.training.data.parsing.messages import Parsed, parse_messages
from manylora.adapters.training.data.parsing.record import Record
from manylora.adapters.training.data.parsing.tools import parse_tools
from manylora.adapters.training.data.rows import ChatRow, LabelRow, PlainRow, Row, TextRow


def messages(record: Record) -> Row | None:
    """``{"messages": [...]}``, perhaps with system and tools."""
    return _conversation(record, "messages")


def sharegpt(record: Record) -> Row | None:
    """``{"conversations": [{"from": ..., "value": ...}]}``, perhaps with system and tools."""
    return _conversation(record, "conversations")


def _conversation(record: Record, field: str) -> Row | None:
    parsed = parse_messages(record.get(field), record, record.name(field))
    tools, system = parse_tools(record), record.optional_text("system")
    if parsed is None or tools is None or system is None:
        return None
    name = record.name(field)
    if not any(message["role"] == "assistant" for message in parsed.messages):
        record.say(f"{name}: no assistant turn, so there is nothing to learn: add one")
        return None
    if not any(parsed.weights):
        record.say(f"{name}: every assistant turn has weight 0, so there is nothing to learn")
        return None
    parsed = _after_lead(with_system(parsed, system, record), record)
    if not any(parsed.weights):
        record.say(f"{name}: the only answer comes before any question, so there is nothing to learn")
        return None
    return ChatRow(record.origin, parsed.messages, parsed.weights, tools)


def with_system(parsed: Parsed, system: str, record: Record) -> Parsed:
    """The turns after the system prompt of the row's own field, unless they have one themselves."""
    if not system or record.layout.turns.drop_system:
        return parsed
    if parsed.messages[0]["role"] == "system":
        record.note(f"{record.name('system')}: not used, the conversation has a system turn of its own")
        return parsed
    turn = {"role": "system", "content": system}
    return Parsed((turn, *parsed.messages), (0, *parsed.weights))


def _after_lead(parsed: Parsed, record: Record) -> Parsed:
    """Turns of the assistant at the very beginning are no answers: they are seen, and not learned."""
    lead = next((i for i, m in enumerate(parsed.messages) if m["role"] != "assistant"), len(parsed.messages))
    if lead == 0:
        return parsed
    record.note("conversations begin with a turn of the assistant: it is seen, and not learned")
    return Parsed(parsed.messages, (0,) * lead + parsed.weights[lead:])


def alpaca(record: Record) -> Row | None:
    """``{"instruction": ..., "input": ..., "output": ...}``, perhaps with system and history."""
    output, question = record.text("output"), joined_question(record)
    system, past = record.optional_text("system"), _history(record)
    if output is None or question is None or system is None or past is None:
        return None
    turns = [{"role": "system", "content": system}] if system else []
    turns += [*past, {"role": "user", "content": question}, {"role": "assistant", "content": output}]
    return ChatRow(record.origin, tuple(turns), tuple(int(turn["role"] == "assistant") for turn in turns))


def joined_question(record: Record) -> str | None:
    """Instruction and input in one text, where there are both."""
    instruction, extra = record.optional_text("instruction"), record.optional_text("input")
    if instruction is None or extra is None:
        return None
    if not instruction and not extra:
        return record.text("instruction")
    return record.layout.joiner.join(part for part in (instruction, extra) if part)


def _history(record: Record) -> list[dict[str, Any]] | None:
    """LLaMA-Factory's earlier rounds, pairs of question and answer; both sides are learned from."""
    value = record.get("history")
    turns: list[dict[str, Any]] = []
    for index, pair in enumerate(
        value if isinstance(value, list) else [] if value in (None, "") else [value]
    ):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            record.say(
                f"{record.name('history')}[{index}]: must be a question and its answer, not {shown(pair)}"
            )
            return None
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def prompt_completion(record: Record) -> Row | None:
    """``{"prompt": ..., "completion": ...}``, both text or both messages."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if record.value.get("label") is False:
        record.say("label: says that the completion is a bad one: remove the row, or make pairs of it (dpo)")
        return None
    if isinstance(prompt, list) or isinstance(completion, list):
        return _messages_completion(record, prompt, completion)
    given, follows = record.text("prompt"), record.text("completion")
    return None if given is None or follows is None else TextRow(record.origin, given, follows)


def _messages_completion(record: Record, prompt: object, completion: object) -> Row | None:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    before = parse_messages(prompt, record, record.name("prompt"))
    after = parse_messages(completion, record, record.name("completion"))
    tools = parse_tools(record)
    if before is None or after is None or tools is None:
        return None
    if not any(after.weights):
        record.say(f"{record.name('completion')}: no assistant turn, so there is nothing to learn: add one")
        return None
    weights = (0,) * len(before.weights) + after.weights
    return ChatRow(record.origin, before.messages + after.messages, weights, tools)


def plain_text(record: Record) -> Row | None:
    """``{"text": ...}``: all of it is learned, as it stands."""
    text = record.text("text")
    return None if text is None else PlainRow(record.origin, text)


def label(record: Record) -> Row | None:
    """``{"text": ..., "label": ...}``."""
    text, value = record.text("text"), record.get("label")
    if isinstance(value, bool) or not isinstance(value, str | int) or str(value).strip() == "":
        record.say(f"{record.name('label')}: must be the name or number of a class, not {shown(value)}")
        return None
    return None if text is None else LabelRow(record.origin, text, str(value))
