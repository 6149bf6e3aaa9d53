"""What readers of objects with many shapes under one name have in common: no model of one shape fits them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from manylora.adapters.format.faults import shown
from manylora.server.api.http import limits
from manylora.server.api.http.body import check_size
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.errors import RequestError


def known_fields(value: dict[str, Any], place: Place, where: str) -> dict[str, Any]:
    """The fields of an object that do something; null is like left out.

    Raises:
        RequestError: one that is not known, or not supported.
    """
    rules = rules_of(place)
    kept = rules.sift({name: each for name, each in value.items() if each is not None}, f"{where}.")
    unknown = next((name for name in kept if name not in rules.fields), None)
    if unknown is not None:
        path = f"{where}.{unknown[: limits.MAX_NAME_SHOWN]}"
        raise RequestError(f"Unrecognized field: '{path}'", path, "unknown_parameter")
    return kept


def text_of(holder: Mapping[str, Any], name: str, where: str, longest: int | None = None) -> str:
    """The string ``name`` of the object at ``where``.

    Raises:
        RequestError: it is none, or empty or longer than ``longest`` where there is such a bound.
    """
    value, path = holder.get(name), f"{where}.{name}"
    if not isinstance(value, str) or (longest is not None and not 0 < len(value) <= longest):
        bound = "" if longest is None else f" of 1 to {longest} characters"
        raise RequestError(f"'{path}' must be a string{bound}", path)
    return value


def unsupported_kind(kind: object, where: str, why: str) -> RequestError:
    """The answer to an object at ``where`` whose ``type`` OpenAI has and this server has not."""
    path = f"{where}.type"
    return RequestError(
        f"'{path}' {shown(kind)} is not supported by this server: {why}", path, "unsupported_parameter"
    )


def one_of(value: Any, allowed: tuple[str, ...], path: str) -> str:
    """``value``, if it is one of ``allowed``.

    Raises:
        RequestError: it is not.
    """
    if not isinstance(value, str) or value not in allowed:
        raise RequestError(f"'{path}' must be one of {', '.join(allowed)}, not {shown(str(value))}", path)
    return value


def sifted(values: Any, place: Place, where: str) -> Any:
    """An object without the fields that ask for nothing; for the schema that reads it next.

    Raises:
        RequestError: a field that is not supported, by its path.
    """
    return rules_of(place).sift(values, f"{where}.") if isinstance(values, dict) else values


def each_object(value: Any, limit: int, where: str, read: Callable[[dict[str, Any], str], Any]) -> Any:
    """The list at ``where`` with every object in it replaced by what ``read`` makes of it and of its path.

    Raises:
        RequestError: there are more than ``limit``.
    """
    if not isinstance(check_size(value, limit, where), list):
        return value
    return [
        read(item, f"{where}[{index}]") if isinstance(item, dict) else item
        for index, item in enumerate(value)
    ]
