"""What a file calls the parts of its rows: the usual names, and others that a description gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

FUNCTION_CALL = "function_call"  # a turn of the assistant whose text is the call, as JSON

# How files of all kinds spell who speaks, in lower case, and what it is in a chat template.
ROLE_SPELLINGS: Mapping[str, str] = MappingProxyType(
    {
        "system": "system",
        "developer": "developer",
        "user": "user",
        "human": "user",
        "prompter": "user",
        "assistant": "assistant",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "model": "assistant",
        "ai": "assistant",
        "tool": "tool",
        "observation": "tool",
        "tool_response": "tool",
        "function_response": "tool",
        "ipython": "tool",
        "function_call": FUNCTION_CALL,
        "function-call": FUNCTION_CALL,
        "tool_call": FUNCTION_CALL,
    }
)


@dataclass(frozen=True, slots=True)
class Turns:
    """What a file calls the parts of a turn; of several names the first that a turn has counts."""

    role: tuple[str, ...] = ("role", "from")
    content: tuple[str, ...] = ("content", "value")
    roles: Mapping[str, str] = field(default_factory=lambda: ROLE_SPELLINGS)
    learned: tuple[str, ...] = ("weight", "train", "training", "loss")  # keys that say whether to learn it
    by_default: bool = True  # whether the assistant's turns are learned that have none of these keys
    drop_system: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of one file are to be read."""

    format: str | None = None  # the name of the format; None: recognized by the fields
    columns: Mapping[str, str | None] = field(default_factory=dict)  # a format's field -> the file's, if any
    turns: Turns = field(default_factory=Turns)
    joiner: str = "\n\n"  # between an instruction and its input

    def key(self, name: str) -> str | None:
        """What the file calls the field ``name``; None: it has none."""
        return self.columns.get(name, name)
