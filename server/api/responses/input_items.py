"""The items of a Responses request: read, and turned into the messages of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from manylora.adapters.format.text.chat import join_parts
from manylora.server.api.http import limits
from manylora.server.api.http.body import check_size
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.hand_read import known_fields, one_of, text_of, unsupported_kind
from manylora.server.api.responses.references import REFERENCE
from manylora.server.errors import RequestError
from manylora.server.responses.stored import Item

_ROLES: Final = ("user", "assistant", "system", "developer")
_INPUT, _OUTPUT = "input_text", "output_text"
_TEXTS: Final = (_INPUT, _OUTPUT, "text")


def read_input(value: Any) -> list[Item]:
    """A text or a list of items -> items in the form in which they are kept and shown; ids may be empty.

    Raises:
        RequestError: naming what is wrong by its path.
    """
    if isinstance(value, str):
        return [_message({"role": "user", "content": value}, "input")]
    if not isinstance(check_size(value, limits.MAX_MESSAGES, "input"), list) or not value:
        raise RequestError("'input' must be a text, or a list of items that is not empty", "input")
    return [_item(each, f"input[{index}]") for index, each in enumerate(value)]


def _item(value: Any, where: str) -> Item:
    if not isinstance(value, dict) or len(value) > limits.MAX_FIELDS:
        raise RequestError(f"'{where}' must be an item: an object", where)
    untyped = "message" if "role" in value else REFERENCE if set(value) == {"id"} else None
    kind = value.get("type") or untyped
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise RequestError(
            f"'{where}.type' is not supported by this server: items are {', '.join(_READERS)}",
            f"{where}.type",
            "unsupported_parameter",
        )
    return reader(value, where)


def _message(value: dict[str, Any], where: str) -> Item:
    kept = known_fields(value, Place.ITEM_MESSAGE, where)
    role = one_of(kept.get("role"), _ROLES, f"{where}.role")
    kind = _OUTPUT if role == "assistant" else _INPUT
    content = kept.get("content")
    if isinstance(content, str):
        content = [{"type": kind, "text": content}]
    parts = _parts(content, kind, f"{where}.content")
    return {**_head(kept, "message", where), "role": role, "content": parts}


def _call(value: dict[str, Any], where: str) -> Item:
    kept = known_fields(value, Place.ITEM_CALL, where)
    return {
        **_head(kept, "function_call", where),
        "call_id": text_of(kept, "call_id", where, limits.MAX_CALL_ID_LENGTH),
        "name": text_of(kept, "name", where, limits.MAX_FUNCTION_NAME_LENGTH),
        "arguments": text_of(kept, "arguments", where),
    }


def _result(value: dict[str, Any], where: str) -> Item:
    kept = known_fields(value, Place.ITEM_OUTPUT, where)
    output = kept.get("output")
    if not isinstance(output, str):
        output = _parts(output, _INPUT, f"{where}.output")
    return {
        **_head(kept, "function_call_output", where),
        "call_id": text_of(kept, "call_id", where, limits.MAX_CALL_ID_LENGTH),
        "output": output,
    }


def _reasoning(value: dict[str, Any], where: str) -> Item:
    kept = known_fields(value, Place.ITEM_REASONING, where)
    summary = _thoughts(kept.get("summary") or [], "summary_text", f"{where}.summary")
    content = _thoughts(kept.get("content") or [], "reasoning_text", f"{where}.content")
    return {**_head(kept, "reasoning", where), "summary": summary, "content": content}


def _reference(value: dict[str, Any], where: str) -> Item:
    kept = known_fields(value, Place.ITEM_REFERENCE, where)
    return {"id": text_of(kept, "id", where, limits.MAX_RESPONSE_ID_LENGTH), "type": REFERENCE}


_READERS: Final[Mapping[str, Callable[[dict[str, Any], str], Item]]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _result,
    "reasoning": _reasoning,
    REFERENCE: _reference,
}


def _head(kept: Mapping[str, Any], kind: str, where: str) -> Item:
    """What all items have: ``id`` (empty, if the client has none), ``type``, ``status``."""
    own = text_of(kept, "id", where, limits.MAX_RESPONSE_ID_LENGTH) if kept.get("id") else ""
    return {"id": own, "type": kind, "status": "completed"}


def _parts(value: Any, kind: str, where: str) -> list[dict[str, Any]]:
    if not isinstance(check_size(value, limits.MAX_PARTS, where), list):
        raise RequestError(f"'{where}' must be a text, or a list of parts", where)
    return [_part(each, kind, f"{where}[{index}]") for index, each in enumerate(value)]


def _part(value: Any, kind: str, where: str) -> dict[str, Any]:
    given = value.get("type") if isinstance(value, dict) else None
    if given not in _TEXTS:
        raise unsupported_kind(given, where, f"parts are text ({', '.join(_TEXTS)})")
    text = text_of(known_fields(value, Place.ITEM_PART, where), "text", where)
    return {"type": kind, "text": text, **({"annotations": []} if kind == _OUTPUT else {})}


def _thoughts(value: Any, kind: str, where: str) -> list[dict[str, Any]]:
    if not isinstance(check_size(value, limits.MAX_PARTS, where), list):
        raise RequestError(f"'{where}' must be a list", where)
    thoughts = []
    for index, each in enumerate(value):
        path = f"{where}[{index}]"
        if not isinstance(each, dict) or set(each) != {"type", "text"} or each["type"] != kind:
            raise RequestError(f"'{path}' must have 'text' and the type {kind}", path)
        thoughts.append({"type": kind, "text": text_of(each, "text", path)})
    return thoughts


def messages_of(instructions: str | None, items: Iterable[Item]) -> list[dict[str, Any]]:
    """A conversation in the form of chat requests.

    What the assistant thought, said and called between two turns of others is one message; a system message
    that follows instructions is joined to them, since many templates take only one.
    """
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for item in items:
        if item["type"] == "message" and item["role"] != "assistant":
            text = _joined(item["content"])
            if item["role"] != "user" and len(messages) == 1 and messages[0]["role"] == "system":
                messages[0] = {"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}
            else:
                messages.append({"role": item["role"], "content": text})
        elif item["type"] == "function_call_output":
            output = item["output"]
            text = output if isinstance(output, str) else _joined(output)
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": text})
        else:
            _add_to_turn(messages, item)
    return messages


def _add_to_turn(messages: list[dict[str, Any]], item: Item) -> None:
    """Add what the assistant did to its turn, or begin one."""
    if not messages or messages[-1]["role"] != "assistant" or _begins_turn(messages[-1], item):
        messages.append({"role": "assistant", "content": ""})
    turn = messages[-1]
    if item["type"] == "reasoning":
        turn["reasoning_content"] = _joined(item["content"] or item["summary"])
    elif item["type"] == "message":
        turn["content"] = _joined(item["content"])
    else:
        function = {"name": item["name"], "arguments": item["arguments"]}
        turn.setdefault("tool_calls", []).append(
            {"id": item["call_id"], "type": "function", "function": function}
        )


def _begins_turn(turn: Mapping[str, Any], item: Item) -> bool:
    """Whether ``turn`` has already what ``item`` would add, and which there is once."""
    if item["type"] == "reasoning":
        return "reasoning_content" in turn or bool(turn["content"]) or "tool_calls" in turn
    return item["type"] == "message" and bool(turn["content"])


def _joined(parts: Iterable[Mapping[str, str]]) -> str:
    return join_parts([part["text"] for part in parts])
