"""Faults of the chat request that a Responses request comes to, told in the words of the latter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pydantic import ValidationError

from manylora.server.api.http.body import path_of
from manylora.server.errors import ContextTooLong, RequestError

# In this order: how paths of chat requests are spelt here.
_SPELLINGS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"\bmessages\[\d+\][\w.\[\]]*"), "input"),
    (re.compile(r"\bmessages\b"), "input"),
    (re.compile(r"\bresponse_format\.json_schema\b"), "text.format"),
    (re.compile(r"\bresponse_format\b"), "text.format"),
    (re.compile(r"\bmax_(completion_)?tokens\b"), "max_output_tokens"),
    (re.compile(r"\breasoning_effort\b"), "reasoning.effort"),
    (re.compile(r"(\btools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"'verbosity'"), "'text.verbosity'"),
)


def as_path(path: str) -> str:
    """A path of a chat request as the Responses API spells it."""
    return _spelt(f"'{path}'")[1:-1]


@contextmanager
def told_in_own_words() -> Iterator[None]:
    """Faults within name the fields of the Responses API.

    Raises:
        RequestError, ContextTooLong: those that were raised.
    """
    try:
        yield
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        path = as_path(path_of(fault["loc"]))
        raise RequestError(f"{path}: {fault['msg']}", path) from None
    except ContextTooLong as error:
        raise ContextTooLong(_spelt(str(error)), as_path(error.param or "messages")) from error
    except RequestError as error:
        if error.param is None:
            raise
        raise RequestError(_spelt(str(error)), as_path(error.param), error.code) from error


def _spelt(text: str) -> str:
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text
