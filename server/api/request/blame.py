"""Faults of the chat request that another API's request comes to, told in the words of the latter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydantic import ValidationError

from manylora.server.api.http.body import path_of
from manylora.server.errors import ContextTooLong, RequestError


class Wording:
    """How one API spells the paths of chat requests."""

    def __init__(self, spellings: Sequence[tuple[str, str]]) -> None:
        """``spellings`` are expressions and what stands in their place, applied in this order."""
        self._spellings = [(re.compile(pattern), spelling) for pattern, spelling in spellings]

    def path(self, path: str) -> str:
        """A path of a chat request in this API's words."""
        return self._text(f"'{path}'")[1:-1]

    def _text(self, text: str) -> str:
        for pattern, spelling in self._spellings:
            text = pattern.sub(spelling, text)
        return text

    @contextmanager
    def used(self) -> Iterator[None]:
        """Faults within name the fields of this API.

        Raises:
            RequestError, ContextTooLong: those that were raised.
        """
        try:
            yield
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            path = self.path(path_of(fault["loc"]))
            raise RequestError(f"{path}: {fault['msg']}", path) from None
        except ContextTooLong as error:
            raise ContextTooLong(self._text(str(error)), self.path(error.param or "messages")) from error
        except RequestError as error:
            if error.param is None:
                raise
            raise RequestError(self._text(str(error)), self.path(error.param), error.code) from error
