"""What becomes of a field that a client sends: the four sorts, and how they are applied to an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Final

from manylora.server.errors import RequestError

# One letter for each API that knows a field.
APIS: Final[Mapping[str, str]] = {
    "O": "OpenAI",
    "V": "vLLM",
    "S": "SGLang",
    "L": "llama.cpp",
    "A": "Ollama",
    "N": "Anthropic",
    "M": "manylora",
}


class Sort(Enum):
    """The four sorts of fields."""

    SERVED = "does what it says"
    HINT = "taken and ignored: it can change no answer"
    DEFAULT = "taken with the values that ask for what is done anyway, else refused by name"
    REFUSED = "refused by name"


class Place(StrEnum):
    """The objects of requests: the bodies of routes, and what they hold."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    COUNT_TOKENS = "messages/count_tokens"
    CLASSIFY = "classify"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    SCORE = "score"
    COMPARE = "compare"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    LOAD = "load_lora_adapter"
    UNLOAD = "unload_lora_adapter"
    MESSAGE = "a message"
    PART = "a part of a message"
    TOOL_CALL = "a tool call"
    TOOL = "a tool"
    FUNCTION = "a function of a tool"
    STREAM_OPTIONS = "stream_options"
    RESPONSE_FORMAT = "response_format"
    JSON_SCHEMA = "response_format.json_schema"
    STRUCTURED_OUTPUTS = "structured_outputs"
    ITEM_MESSAGE = "an input message"
    ITEM_PART = "a part of an item"
    ITEM_CALL = "a function_call"
    ITEM_OUTPUT = "a function_call_output"
    ITEM_REASONING = "a reasoning item"
    ITEM_REFERENCE = "an item_reference"
    ITEM_TOOL = "a tool of responses"
    REASONING = "reasoning of responses"
    TEXT = "text of responses"
    TEXT_FORMAT = "text.format of responses"
    TURN = "a turn of messages"
    BLOCK_TEXT = "a text block"
    BLOCK_TOOL_USE = "a tool_use block"
    BLOCK_TOOL_RESULT = "a tool_result block"
    BLOCK_THINKING = "a thinking block"
    BLOCK_REDACTED = "a redacted_thinking block"
    MESSAGES_TOOL = "a tool of messages"
    MESSAGES_CHOICE = "tool_choice of messages"
    MESSAGES_METADATA = "metadata of messages"
    THINKING = "thinking of messages"
    OUTPUT_CONFIG = "output_config of messages"
    OUTPUT_FORMAT = "output_config.format of messages"


GENERATION: Final = (Place.CHAT, Place.COMPLETIONS)


@dataclass(frozen=True, slots=True)
class Field:
    """One row of the table: a field, where it stands, and what becomes of it."""

    name: str
    known_to: str  # the letters of APIS
    places: tuple[Place, ...]
    sort: Sort
    taken: tuple[Any, ...] = ()  # values that mean the same as leaving the field out
    note: str = ""

    def asks_for_nothing(self, value: Any) -> bool:
        """Whether ``value`` means the same as leaving the field out."""
        return value is None or self.sort is Sort.HINT or any(_same(value, each) for each in self.taken)

    def is_read(self, value: Any) -> bool:
        """Whether a schema has to read the field; it also knows what null means for it."""
        return self.sort is Sort.SERVED and (value is None or not self.asks_for_nothing(value))


@dataclass(frozen=True, slots=True)
class Rules:
    """The rows for one place, by name."""

    fields: Mapping[str, Field]

    def sift(self, values: dict[str, Any], where: str = "") -> dict[str, Any]:
        """The fields of ``values`` that a schema has to read; ``where`` prefixes names in errors.

        Fields that ask for nothing are left out. Those that are in no row stay, for the schema to refuse.

        Raises:
            RequestError: a field asks for something that is not supported, naming it.
        """
        kept = {}
        for name, value in values.items():
            row = self.fields.get(name)
            if row is None or row.is_read(value):
                kept[name] = value
            elif not row.asks_for_nothing(value):
                raise _refusal(row, f"{where}{name}")
        return kept


def _refusal(row: Field, path: str) -> RequestError:
    hint = f": {row.note}" if row.note else ""
    return RequestError(f"'{path}' is not supported by this server{hint}", path, "unsupported_parameter")


def _same(value: Any, other: Any) -> bool:
    """Equality in JSON: 1 and 1.0 are one number, which neither true nor "1" is."""
    numbers = (int, float)
    if type(value) in numbers and type(other) in numbers:
        return bool(value == other)
    return type(value) is type(other) and bool(value == other)
