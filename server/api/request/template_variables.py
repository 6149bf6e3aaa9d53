"""Variables that a request gives to the chat template."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import PlainValidator

from manylora.server.api.http import limits
from manylora.server.api.http.body import check_size
from manylora.server.errors import RequestError

Value = bool | int | float | str | None

# What templates and those who render them mean by these names is not for a request to say.
RESERVED: Final = frozenset(
    {
        *("messages", "conversation", "conversations", "tools", "documents", "chat_template", "variables"),
        *("add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation"),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "processor_kwargs", "self", "raise_exception", "strftime_now"),
        *("range", "dict", "lipsum", "cycler", "joiner", "namespace", "loop", "true", "false", "none"),
    }
)

_PARAM = "chat_template_kwargs"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_WORD = re.compile(r"[A-Za-z0-9_.:-]*")  # nothing that could be read as a control token


def _check(value: Any) -> dict[str, Value]:
    if not isinstance(check_size(value, limits.MAX_TEMPLATE_VARIABLES, _PARAM), dict):
        raise RequestError(f"'{_PARAM}' must be an object", _PARAM)
    for name, item in value.items():
        _check_one(name, item)
    return dict(value)


def _check_one(name: str, value: Any) -> None:
    path = f"{_PARAM}.{name[: limits.MAX_NAME_SHOWN]}"
    if len(name) > limits.MAX_VARIABLE_LENGTH or not _NAME.fullmatch(name):
        raise RequestError(f"'{path}' is not the name of a variable", path)
    if name in RESERVED or name.endswith("_token"):
        raise RequestError(
            f"'{path}' is not supported by this server: it is not for requests to set",
            path,
            "unsupported_parameter",
        )
    if isinstance(value, str):
        if len(value) > limits.MAX_VARIABLE_LENGTH or not _WORD.fullmatch(value):
            raise RequestError(f"'{path}' must be one short word: letters, digits, '_', '.', ':', '-'", path)
    elif isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value)):
        raise RequestError(f"'{path}' must be true, false, a number or a word", path)


TemplateVariables = Annotated[
    dict[str, Value],
    PlainValidator(_check, json_schema_input_type=Mapping[str, bool | int | float | str | None]),
]
