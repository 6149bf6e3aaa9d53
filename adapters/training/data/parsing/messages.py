"""The turns of a conversation: checked one by one, and turned into what the chat template takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from manylora.adapters.format.faults import shown
from manylora.adapters.format.text.chat import join_parts, template_message
from manylora.adapters.training.data.parsing.layouts import FUNCTION_CALL, Turns
from manylora.adapters.training.data.parsing.record import Record
from manylora.adapters.training.data.parsing.tools import calls_in_text, parse_calls
from manylora.adapters.training.data.reading.strict_json import loads
from manylora.adapters.training.data.rows import Messages

ROLES = ("system", "developer", "user", "assistant", "tool")
_KEPT = ("name", "tool_call_id")
# Keys that ask for something that is not done here: a turn must not be learned as if they were not there.
_REFUSED = frozenset(
    {
        "train_detail", "training_detail", "reasoning_training_detail", "loss_scale", "loss_weight",
        "loss_mask", "mask", "masked", "reasoning_content", "reasoning", "thinking", "function_call",
        "refusal", "images", "image", "videos", "video", "audios", "audio",
    }
)  # fmt: skip
_ALIKE = 0.8  # how alike two keys are of which one is taken for a misspelling of the other
_WORDS: Mapping[str, bool] = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, slots=True)
class Parsed:
    """Messages for the template and which of them are learned."""

    messages: Messages
    weights: tuple[int, ...]


def parse_messages(value: object, record: Record, field: str) -> Parsed | None:
    """The turns in ``value``; every fault is said, and with any there is no result."""
    value = _turn_list(value)
    if not isinstance(value, list) or not value:
        record.say(f"{field}: must be a list of messages, and not empty (it is {shown(value)})")
        return None
    found = [_message(item, f"{field}[{index}]", record, field) for index, item in enumerate(value)]
    if any(item is None for item in found):
        return None
    whole = [item for item in found if item is not None and not _is_dropped(item[0], record)]
    if not whole:
        record.say(f"{field}: must be a list of messages, and not empty (every turn of it is)")
        return None
    return Parsed(tuple(message for message, _ in whole), tuple(weight for _, weight in whole))


def _turn_list(value: object) -> object:
    """Turns as a list: of a CSV they come as JSON, of a Parquet file perhaps as one list for each key."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, dict) and value and all(isinstance(item, list) for item in value.values()):
        lengths = {len(item) for item in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return value


def _is_dropped(message: Mapping[str, Any], record: Record) -> bool:
    if message["role"] != "system":
        return False
    if record.layout.turns.drop_system:
        record.note("system turns dropped, as the description asks for")
        return True
    if message["content"].strip():
        return False
    record.note("empty system turns dropped")
    return True


def _message(value: object, where: str, record: Record, field: str) -> tuple[Mapping[str, Any], int] | None:
    turns = record.layout.turns
    if not isinstance(value, dict):
        record.say(
            f"{where}: must be an object with {turns.role[0]} and {turns.content[0]}, not {shown(value)}"
        )
        return None
    faults: list[str] = []
    role_key, content_key = _present(value, turns.role), _present(value, turns.content)
    role = _role(value, role_key, turns, faults)
    calls, has_calls = parse_calls(value.get("tool_calls"), role, faults), bool(value.get("tool_calls"))
    if role == FUNCTION_CALL:
        role, calls = "assistant", calls_in_text(value.get(content_key), content_key, faults)
        content = ""
    else:
        content = _content(value.get(content_key), content_key, role, has_calls, faults)
    weight = _weight(value, role, turns, faults)
    known = {role_key, content_key, "tool_calls", *turns.learned, *_KEPT}
    _check_keys(value, known, field, record, faults)
    for fault in faults:
        record.say(f"{where}{fault}")
    if faults:
        return None
    if role == "user" and not content.strip():
        record.note("empty user turns, learned from as they are")
    fields = {name: value[name] for name in _KEPT if value.get(name) is not None}
    if calls:
        fields["tool_calls"] = calls
    return template_message(role, content, **fields), weight


def _present(value: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return next((key for key in keys if value.get(key) is not None), keys[0])


def _role(value: Mapping[str, Any], key: str, turns: Turns, faults: list[str]) -> str:
    given = value.get(key)
    role = None
    if isinstance(given, str):  # a description may spell a role in capitals
        role = turns.roles.get(given) or turns.roles.get(given.strip().lower())
    if given is None:
        faults.append(f": has no {' or '.join(turns.role)}: add one of {', '.join(ROLES)}")
    elif given == "function" and role is None:
        faults.append(f".{key}: 'function' is OpenAI's old name: use 'tool', and tool_calls before it")
    elif role is None:
        known = ROLES if key == "role" else tuple(turns.roles)
        faults.append(f".{key}: {shown(given)} is none of {', '.join(known)}")
    return role or ""


def _content(value: object, key: str, role: str, has_calls: bool, faults: list[str]) -> str:
    if isinstance(value, list):
        texts = [p.get("text") for p in value if isinstance(p, dict) and p.get("type") == "text"]
        if len(texts) < len(value) or not all(isinstance(text, str) for text in texts):
            faults.append(f'.{key}: only parts {{"type": "text", "text": ...}} can be trained on')
            return ""
        value = join_parts([str(text) for text in texts])
    if value is None and (has_calls or role in ("system", "developer", "tool")):
        return ""
    if not isinstance(value, str):
        faults.append(f".{key}: must be text, not {shown(value)}")
        return ""
    if not value.strip() and role == "assistant" and not has_calls:
        faults.append(f".{key}: is empty: write the text or leave the message out")
    return value


def _weight(value: Mapping[str, Any], role: str, turns: Turns, faults: list[str]) -> int:
    """1 where the turn is learned, else 0: as its own keys say, or as is usual for its role."""
    given = {key: value[key] for key in turns.learned if value.get(key) is not None}
    read = {key: _truth(item) for key, item in given.items()}
    for key, truth in read.items():
        if truth is None:
            faults.append(f".{key}: must be 0 or 1, not {shown(given[key])}")
        elif truth and role != "assistant":
            faults.append(f".{key}: only assistant messages have a weight: no other turn can be learned")
    if len({truth for truth in read.values() if truth is not None}) > 1:
        faults.append(f".{' and .'.join(read)}: say both that the turn is learned and that it is not")
    if not read:
        return int(role == "assistant" and turns.by_default)
    return int(role == "assistant" and all(read.values()))


def _truth(value: object) -> bool | None:
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _check_keys(
    value: Mapping[str, Any],
    known: set[str],
    field: str,
    record: Record,
    faults: list[str],
) -> None:
    """Keys that no turn has: a misspelling or something not done here is a fault, the rest is counted."""
    usual = {*record.layout.turns.role, *record.layout.turns.content}
    for key, item in value.items():
        if key in known or item is None or item in ("", [], {}):
            continue
        alike = get_close_matches(key, known | usual, n=1, cutoff=_ALIKE)
        if key in _REFUSED:
            faults.append(f".{key}: asks for what is not done here: remove it, or the turn")
        elif alike:
            faults.append(f".{key}: is not a field of a message; remove it, or call it {alike[0]}")
        else:
            record.note(f"{field}[].{key}: not a field of a turn, not looked at")
