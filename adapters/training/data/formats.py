"""The formats of data files: recognized by the fields of the first row, and said.

Each parser turns one object into a row or tells what is wrong with it. Fields beyond those of the format
(ids, sources) are not looked at; which they are is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from manylora.adapters.format.faults import shown
from manylora.adapters.training.data.faults import Findings
from manylora.adapters.training.data.lines import DataFile, Line
from manylora.adapters.training.data.messages import Say, parse_messages, parse_tools
from manylora.adapters.training.data.rows import ChatRow, LabelRow, Origin, PreferenceRow, Row, TextRow

Task = Literal["sft", "dpo", "classification"]
Parser = Callable[[Mapping[str, Any], Origin, Say], Row | None]
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}


@dataclass(frozen=True, slots=True)
class Format:
    """One shape of rows; it is recognized by having all of ``required``."""

    name: str
    task: Task
    required: tuple[str, ...]
    optional: tuple[str, ...]
    parse: Parser
    becomes: str  # what is trained, for the summary


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """The rows of one file, its format, and the fields that were not looked at with their counts."""

    file: DataFile
    format: Format | None  # None: nothing could be read
    rows: tuple[Row, ...]
    ignored: Mapping[str, int]


def parse_file(file: DataFile, findings: Findings) -> ParsedFile:
    """Recognize the format by the first row and parse every row; faults carry their lines."""
    if not file.lines:
        return ParsedFile(file, None, (), {})
    first = file.lines[0]
    format_ = recognize(first.value)
    if format_ is None:
        findings.fault(
            file.path, first.number, f"no known format has the fields {_names(first.value)}: {_known()}"
        )
        return ParsedFile(file, None, (), {})
    rows: list[Row] = []
    ignored: dict[str, int] = {}
    for line in file.lines:
        row = _parse_line(line, format_, findings)
        if row is not None:
            rows.append(row)
        for key in line.value.keys() - {*format_.required, *format_.optional}:
            ignored[key] = ignored.get(key, 0) + 1
    return ParsedFile(file, format_, tuple(rows), ignored)


def recognize(value: Mapping[str, Any]) -> Format | None:
    """The format that a row's fields belong to."""
    return next((f for f in FORMATS if all(key in value for key in f.required)), None)


def _parse_line(line: Line, format_: Format, findings: Findings) -> Row | None:
    def say(message: str) -> None:
        findings.fault(line.path, line.number, message)

    missing = [key for key in format_.required if key not in line.value]
    if missing:
        other = recognize(line.value)
        hint = f" (this row looks like {other.name}: keep formats in files of their own)" if other else ""
        say(f"has no {' and no '.join(missing)}, which the file's first row has: it is {format_.name}{hint}")
        return None
    return format_.parse(line.value, Origin(line.path, line.number), say)


def _names(value: Mapping[str, Any]) -> str:
    return ", ".join(sorted(value)) or "(none)"


def _known() -> str:
    return "; ".join(f"{f.name} has {', '.join(f.required)}" for f in FORMATS)


def _text(value: object, field: str, say: Say) -> str | None:
    if not isinstance(value, str):
        say(f"{field}: must be text, not {shown(value)}")
    elif not value.strip():
        say(f"{field}: is empty: write the text or remove the row")
    else:
        return value
    return None


def _chat(value: Mapping[str, Any], origin: Origin, say: Say) -> Row | None:
    parsed, tools = parse_messages(value["messages"], say), parse_tools(value.get("tools"), say)
    if parsed is None or tools is None:
        return None
    if not any(message["role"] == "assistant" for message in parsed.messages):
        say("messages: no assistant turn, so there is nothing to learn: add one")
        return None
    if not any(parsed.weights):
        say("messages: every assistant turn has weight 0, so there is nothing to learn")
        return None
    return ChatRow(origin, parsed.messages, parsed.weights, tools)


def _prompt_completion(value: Mapping[str, Any], origin: Origin, say: Say) -> Row | None:
    if isinstance(value["prompt"], list) or isinstance(value["completion"], list):
        prompt = parse_messages(value["prompt"], say, "prompt")
        completion = parse_messages(value["completion"], say, "completion")
        tools = parse_tools(value.get("tools"), say)
        if prompt is None or completion is None or tools is None:
            return None
        if not any(completion.weights):
            say("completion: no assistant turn, so there is nothing to learn: add one")
            return None
        weights = (0,) * len(prompt.weights) + completion.weights
        return ChatRow(origin, prompt.messages + completion.messages, weights, tools)
    given, follows = _text(value["prompt"], "prompt", say), _text(value["completion"], "completion", say)
    return None if given is None or follows is None else TextRow(origin, given, follows)


def _alpaca(value: Mapping[str, Any], origin: Origin, say: Say) -> Row | None:
    instruction = _text(value["instruction"], "instruction", say)
    output = _text(value["output"], "output", say)
    extra, system = value.get("input"), value.get("system")
    for field, optional in (("input", extra), ("system", system)):
        if optional is not None and not isinstance(optional, str):
            say(f"{field}: must be text, not {shown(optional)}")
            return None
    if instruction is None or output is None:
        return None
    question = f"{instruction}\n\n{extra}" if extra else instruction
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": output}]
    return ChatRow(origin, tuple(messages), (0,) * (len(messages) - 1) + (1,))


def _sharegpt(value: Mapping[str, Any], origin: Origin, say: Say) -> Row | None:
    turns = value["conversations"]
    if not isinstance(turns, list) or not turns:
        say(f"conversations: must be a list of turns, and not empty (it is {shown(turns)})")
        return None
    messages: list[dict[str, Any]] = []
    for index, turn in enumerate(turns):
        role = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(turn, dict) or role is None:
            say(f"conversations[{index}]: must be an object with from and value")
        elif role not in _SHAREGPT_ROLES:
            say(f"conversations[{index}].from: {shown(role)} is none of {', '.join(_SHAREGPT_ROLES)}")
        else:
            messages.append({"role": _SHAREGPT_ROLES[role], "content": turn.get("value")})
    if len(messages) < len(turns):
        return None
    if isinstance(value.get("system"), str) and value["system"]:
        messages.insert(0, {"role": "system", "content": value["system"]})
    renamed = {"messages": messages, "tools": value.get("tools")}
    return _chat(renamed, origin, lambda message: say(message.replace("messages", "conversations", 1)))


def _openai_preference(value: Mapping[str, Any], origin: Origin, say: Say) -> Row | None:
    given = value["input"]
    if not isinstance(given, dict):
        say("input: must be an object with messages")
        return None
    prompt = parse_messages(given.get("messages"), say, "input.messages")
    tools = parse_tools(given.get("tools"), say)
    chosen = _answer(value["preferred_output"], "preferred_output", say)
    rejected = _answer(value["non_preferred_output"], "non_preferred_output", say)
    if prompt is None or tools is None or chosen is None or rejected is None:
        return None
    return _preference(PreferenceRow(origin, prompt.messages, chosen, rejected, tools), say)


def _chosen_rejected(value: Mapping[str, Any], origin: Origin, say: Say) -> Row | None:
    prompt = value["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    parsed, tools = parse_messages(messages, say, "prompt"), parse_tools(value.get("tools"), say)
    chosen = _answer(value["chosen"], "chosen", say)
    rejected = _answer(value["rejected"], "rejected", say)
    if parsed is None or tools is None or chosen is None or rejected is None:
        return None
    return _preference(PreferenceRow(origin, parsed.messages, chosen, rejected, tools), say)


def _answer(value: object, field: str, say: Say) -> Mapping[str, Any] | None:
    """One assistant message, given as text or as a list with that one message."""
    messages = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
    parsed = parse_messages(messages, say, field)
    if parsed is None:
        return None
    if len(parsed.messages) != 1 or parsed.messages[0]["role"] != "assistant":
        say(f"{field}: must be exactly one assistant message")
        return None
    return parsed.messages[0]


def _preference(row: PreferenceRow, say: Say) -> Row | None:
    if row.chosen == row.rejected:
        say("the preferred and the other answer are the same, so there is nothing to learn")
        return None
    if row.prompt[-1]["role"] == "assistant":
        say("the prompt must not end with an assistant turn: both answers follow it")
        return None
    return row


def _label(value: Mapping[str, Any], origin: Origin, say: Say) -> Row | None:
    text, label = _text(value["text"], "text", say), value["label"]
    if isinstance(label, bool) or not isinstance(label, str | int) or str(label).strip() == "":
        say(f"label: must be the name or number of a class, not {shown(label)}")
        return None
    return None if text is None else LabelRow(origin, text, str(label))


FORMATS: tuple[Format, ...] = (
    Format(
        "OpenAI preference", "dpo", ("input", "preferred_output", "non_preferred_output"), (),
        _openai_preference,
        "both answers after the conversation",
    ),
    Format(
        "prompt/chosen/rejected", "dpo", ("prompt", "chosen", "rejected"), ("tools",), _chosen_rejected,
        "both answers after the prompt, as a conversation",
    ),
    Format(
        "OpenAI messages", "sft", ("messages",), ("tools",), _chat,
        "the assistant's turns of weight 1",
    ),
    Format(
        "ShareGPT", "sft", ("conversations",), ("system", "tools"), _sharegpt,
        "the assistant's (gpt) turns",
    ),
    Format(
        "Alpaca", "sft", ("instruction", "output"), ("input", "system"), _alpaca,
        "output, as the answer to instruction and input in one user turn",
    ),
    Format(
        "prompt/completion", "sft", ("prompt", "completion"), ("tools",), _prompt_completion,
        "the completion, as the answer to the prompt in one user turn (as plain text where the model has no "
        "chat template)",
    ),
    Format("text/label", "classification", ("text", "label"), (), _label, "the class of the text"),
)  # fmt: skip
