"""The table of fields: all that OpenAI, Anthropic, vLLM, SGLang, llama.cpp and Ollama know.

Each row says what becomes of a field.
"""

from __future__ import annotations

from typing import Final

from manylora.server.api.request.fields.field import Field, Place, Rules
from manylora.server.api.request.fields.generation_rows import OPENAI, SERVED, VLLM
from manylora.server.api.request.fields.messages_rows import MESSAGES
from manylora.server.api.request.fields.other_rows import NESTED, ROUTES
from manylora.server.api.request.fields.peer_rows import LLAMA_CPP, OLLAMA, SGLANG
from manylora.server.api.request.fields.reading_rows import READING
from manylora.server.api.request.fields.responses_rows import RESPONSES

FIELDS: Final[tuple[Field, ...]] = (
    *SERVED,
    *OPENAI,
    *VLLM,
    *SGLANG,
    *LLAMA_CPP,
    *OLLAMA,
    *NESTED,
    *ROUTES,
    *READING,
    *RESPONSES,
    *MESSAGES,
)

_RULES: Final = {place: Rules({row.name: row for row in FIELDS if place in row.places}) for place in Place}


def rules_of(place: Place) -> Rules:
    """The rules for ``place``."""
    return _RULES[place]
