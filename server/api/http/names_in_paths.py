"""Adapter names in the paths of routes, where a name may have slashes, plain or encoded."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Path
from pydantic import AfterValidator
from starlette.convertors import Convertor, register_url_convertor

from manylora.adapters.mix import ROUTE_WORDS, normal_name
from manylora.server.api.http.limits import MAX_USER_LENGTH

NAME: Final = "{name:adapter_name}"  # stands for a name in the path of a route


class NameConvertor(Convertor[str]):
    """Matches parts with slashes between them.

    None is "." or "..", and the last is no word that begins another route's end, so a path has one meaning.
    """

    _part = r"(?!\.{1,2}(?:/|$))[^/]+"
    _last = rf"(?!(?:{'|'.join(ROUTE_WORDS)})(?:/|$)){_part}"
    regex = f"{_part}(?:(?:/{_part})*/{_last})?"

    def convert(self, value: str) -> str:
        """What stands in the path, decoded."""
        return value

    def to_string(self, value: str) -> str:
        """What stands in a path for ``value``."""
        return value


register_url_convertor("adapter_name", NameConvertor())

Name = Annotated[
    str, Path(max_length=MAX_USER_LENGTH, description="The adapter's name."), AfterValidator(normal_name)
]
