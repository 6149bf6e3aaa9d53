"""Builds an options model from what was given where, and tells every fault with the place it came from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from manylora.adapters.options.option import flag_of

Model = TypeVar("Model", bound=BaseModel)

_SHOWN = 80  # characters of a value that was refused


class OptionsRefused(ValueError):
    """What was given can't be used; ``str()`` has one line for every fault."""


def read_yaml(file: Path) -> dict[Any, Any]:
    """The mapping in ``file``; an empty file is an empty mapping.

    Raises:
        OptionsRefused: it can't be read, or holds something else.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionsRefused(f"{file}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionsRefused(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise OptionsRefused(f"{file}: must be a mapping of options to values, not {type(content).__name__}")
    return content


def unknown_keys(
    keys: Iterable[object],
    model: type[BaseModel],
    place: Callable[[object], str],
    spell: Callable[[str], str] = str,
    kind: str = "key",
) -> list[str]:
    """A line for each key that names no field of an options model, with the nearest field's name.

    Args:
        keys: what was given, spelled like the fields.
        model: an options model.
        place: where a key was given; begins its line.
        spell: how a field is written at that place.
        kind: what is given there.
    """
    fields = model.model_fields
    return [
        f"{place(key)}: no such {kind}{_nearest(key, fields, spell)}" for key in keys if key not in fields
    ]


def build(
    model: type[Model],
    values: Mapping[str, Any],
    places: Mapping[str, str],
    secrets: Collection[str] = (),
) -> Model:
    """An options model with the values that were given.

    Args:
        model: the class to build.
        values: by field; all of them fields of ``model``.
        places: by field, where its value was given; begins the line of a fault.
        secrets: fields whose values are never shown.

    Raises:
        OptionsRefused: a value is bad or missing, or values do not go together.
    """
    try:
        return model(**values)
    except ValidationError as error:
        lines = [line for fault in error.errors() for line in _describe(fault, places, secrets)]
        raise OptionsRefused("\n".join(lines)) from None


def flag_places(names: Iterable[str]) -> dict[str, str]:
    """Where fields were given, for those given as flags: ``--port``."""
    return {name: flag_of(name) for name in names}


def file_places(file: Path | None, names: Iterable[str]) -> dict[str, str]:
    """Where fields were given, for those given in a YAML file: ``FILE: port``."""
    return {name: f"{file}: {name}" for name in names}


def _nearest(key: object, fields: Iterable[str], spell: Callable[[str], str]) -> str:
    """`` (did you mean port?)``, or nothing when no field resembles ``key``."""
    match = difflib.get_close_matches(str(key).replace("-", "_").lower(), fields, n=1)
    return f" (did you mean {spell(match[0])}?)" if match else ""


def _describe(fault: ErrorDetails, places: Mapping[str, str], secrets: Collection[str]) -> list[str]:
    """One fault that pydantic found, as lines that begin with where the value came from."""
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:  # checks over several fields: one a line, each beginning with its field
        return [_sourced(line, places) for line in message.splitlines()]
    field, *inside = (str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return [f"{flag_of(field)} is required"]
    message = message.replace("Input should be", "must be", 1)
    message = message[:1].lower() + message[1:]
    at = "".join(f"[{part}]" for part in inside if part != "[key]")
    got = "" if field in secrets else f" (got {_shown(fault['input'])})"
    return [f"{places.get(field, field)}{at}: {message}{got}"]


def _sourced(line: str, places: Mapping[str, str]) -> str:
    field, _, rest = line.partition(": ")
    return f"{places.get(field, field)}: {rest}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
