"""Texts with ``{{ item.question }}`` and ``{{ sample.output_text }}`` in them.

A path goes into objects and lists: ``item.a.b``, ``item.rows[0]``, ``item['a key']``. There is nothing else:
no expressions, no filters, no loops; and what stands in a value is text, however it looks. So a template
takes time in proportion to its length and to that of what is put into it, which is bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

MAX_TEMPLATE: Final = 65_536  # characters
MAX_RENDERED: Final = 262_144  # characters
MAX_STEPS: Final = 32  # of one path
NAMESPACES: Final = ("item", "sample")

_PLACE = re.compile(r"\{\{([^{}]*)\}\}")  # which no text makes slow
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*)|\[(\d{1,9})\]|\['([^']*)'\]|\[\"([^\"]*)\"\]")
_NAMESPACE = re.compile(r"[a-z]+")

Path = tuple[str | int, ...]


class TemplateFault(Exception):
    """A template is malformed."""


class VariableMissing(Exception):
    """A template names something that is not there, or too much of it."""


def check_template(template: str) -> None:
    """Raise TemplateFault if ``template`` can't be read."""
    if len(template) > MAX_TEMPLATE:
        raise TemplateFault(f"has more than {MAX_TEMPLATE:,} characters")
    for place in _PLACE.finditer(template):
        parse_path(place[1])
    if "{{" in _PLACE.sub("", template):
        raise TemplateFault("has '{{' without '}}'")


def parse_path(text: str) -> Path:
    """``" item.rows[0] "`` -> ``("item", "rows", 0)``.

    Raises:
        TemplateFault: it is no path.
    """
    text = text.strip()
    shown = text[:80]
    start = _NAMESPACE.match(text)
    if start is None or start[0] not in NAMESPACES:
        raise TemplateFault(f"'{shown}' does not begin with item or sample")
    path: list[str | int] = [start[0]]
    at = start.end()
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None or len(path) > MAX_STEPS:
            raise TemplateFault(f"'{shown}' is no path such as item.rows[0].name")
        path.append(int(step[2]) if step[2] else next(each for each in step.groups() if each is not None))
        at = step.end()
    if len(path) == 1:
        raise TemplateFault(f"'{shown}' names nothing in it")
    return tuple(path)


def render(template: str, values: Mapping[str, Any]) -> str:
    """``template`` with what its paths lead to in their places; what is no text as JSON.

    Raises:
        VariableMissing: there is nothing at the end of a path, or it would be too long.
    """
    left = MAX_RENDERED

    def fill(place: re.Match[str]) -> str:
        nonlocal left
        text = _text(_value(parse_path(place[1]), values))
        left -= len(text)
        if left < 0:
            raise VariableMissing(f"what the template stands for has more than {MAX_RENDERED:,} characters")
        return text

    return _PLACE.sub(fill, template)


def _value(path: Path, within: Mapping[str, Any]) -> Any:
    values: Any = within
    for step in path:
        try:
            if not isinstance(values, list if isinstance(step, int) else Mapping):
                raise KeyError(step)
            values = values[step]  # type: ignore[index]  # of the kind that was just looked for
        except (KeyError, IndexError):
            raise VariableMissing(f"there is no {_written(path)}") from None
    return values


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _written(path: Path) -> str:
    return ".".join(str(step)[:40] for step in path)[:120]
