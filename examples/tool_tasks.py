"""Reads the tools of ``examples/data/tools.txt`` and the ways in which people ask for them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

Message = dict[str, Any]

MADE_UP = 0.35  # share of names that nobody bears, so that names are copied rather than known
_NAMES = frozenset({"city", "person", "team", "film", "song", "word", "item"})
_BEGINNINGS = ("b", "br", "d", "f", "g", "gl", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io")
_ENDS = ("", "", "", "l", "n", "r", "s", "m", "x", "nd", "rk")

_HEAD = re.compile(r"(\w+)\((.*?)\) (.+)")
_PARAMETER = re.compile(r"(\w+)(\??): (.+)")
_PLACE = re.compile(r"\{(\w+)\}")
_BLANK = re.compile(r"[#?%&]")
_MEANT = re.compile(r"\s*\[(.+)\]$")


@dataclass(frozen=True, slots=True)
class Values:
    """What may stand for a parameter of one kind: values, or forms of them."""

    trained: tuple[Any, ...] = ()
    forms: tuple[str, ...] = ()
    held_out: tuple[Any, ...] = ()

    @property
    def type(self) -> str:
        """JSON Schema's type of them."""
        kinds = {type(value) for value in (*self.trained, *self.held_out)}
        return "string" if str in kinds else "number" if float in kinds else "integer"

    def draw(self, rng: random.Random, taken: Collection[Any] = (), *, held_out: bool = False) -> Any:
        """One that is none of ``taken``."""
        while True:
            if self.forms and not held_out:
                value = _parsed(_BLANK.sub(lambda match: _filled(match, rng), rng.choice(self.forms)))
                known: Collection[Any] = self.held_out
            else:
                value, known = rng.choice(self.held_out if held_out else self.trained), ()
            if value not in taken and value not in known:
                return value


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks for, and the call that answers it."""

    text: str
    name: str
    arguments: Mapping[str, Any]

    @property
    def call(self) -> Message:
        return {"type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}


@dataclass(frozen=True)
class Task:
    """A tool, and the ways in which it is asked for."""

    name: str
    definition: Message  # as in a request's "tools"
    kinds: Mapping[str, str]  # of its parameters that have one; the others have choices
    trained: bool
    phrasings: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    results: list[tuple[str, str]] = field(default_factory=list)  # what it answers, and how that is told


class ToolTasks:
    """All of them, with the values that they are asked for with."""

    def __init__(self, path: Path) -> None:
        self.values: dict[str, Values] = {}
        self.tasks: list[Task] = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                self._read(*line.split(" ", 1))

    def _read(self, mark: str, text: str) -> None:
        if mark == "@":
            kind, sort, values = text.split(" ", 2)
            trained, _, held_out = values.partition(" ! ") if sort == "=" else ("", "", values)
            if sort == "~":
                self.values[kind] = Values(forms=tuple(values.split(", ")))
            else:
                known = self.values.get(kind, Values(_listed(trained)))
                self.values[kind] = replace(known, held_out=_listed(held_out))
        elif mark in ("=", "=!"):
            self.tasks.append(self._task(text, trained=mark == "="))
        elif mark == ">":
            result, _, told = text.partition(" => ")
            self.tasks[-1].results.append((result, told))
        else:
            {"?": self.tasks[-1].phrasings, "!": self.tasks[-1].held_out}[mark].append(text)

    def _task(self, text: str, *, trained: bool) -> Task:
        match = _HEAD.fullmatch(text)
        assert match is not None, text
        name, parameters, description = match.groups()
        kinds: dict[str, str] = {}
        properties: dict[str, Any] = {}
        required: list[str] = []
        for parameter in parameters.split(", "):
            found = _PARAMETER.fullmatch(parameter)
            assert found is not None, parameter
            key, optional, kind = found.groups()
            if kind in self.values:
                kinds[key] = kind
                properties[key] = {"type": self.values[kind].type}
            else:
                properties[key] = {"type": "string", "enum": kind.split(" | ")}
            required += [] if optional else [key]
        schema = {"type": "object", "properties": properties, "required": required}
        function = {"name": name, "description": description, "parameters": schema}
        return Task(name, {"type": "function", "function": function}, kinds, trained)

    def request(self, task: Task, phrasing: str, rng: random.Random, *, held_out: bool = False) -> Request:
        """The phrasing with values in its places."""
        meant = _MEANT.search(phrasing)
        text = _MEANT.sub("", phrasing)
        arguments: dict[str, Any] = {}
        for key in _PLACE.findall(text):
            arguments[key] = self._draw(task, key, rng, tuple(arguments.values()), held_out=held_out)
        if meant is not None:
            key, _, value = meant[1].partition("=")
            arguments[key] = value
        properties = task.definition["function"]["parameters"]["properties"]
        ordered = {key: arguments[key] for key in properties if key in arguments}
        return Request(_fill(text, arguments), task.name, ordered)

    def result(self, task: Task, request: Request, rng: random.Random) -> tuple[str, str]:
        """What the tool answers to ``request``, and how that is told."""
        result, told = rng.choice(task.results)
        values = dict(request.arguments)
        for key in _PLACE.findall(result):
            if key not in values:
                values[key] = self.values[key].draw(rng)
        return _fill(result, values), _fill(told, values)

    def _draw(
        self, task: Task, key: str, rng: random.Random, taken: tuple[Any, ...], *, held_out: bool
    ) -> Any:
        if key not in task.kinds:
            choices = task.definition["function"]["parameters"]["properties"][key]["enum"]
            return rng.choice([choice for choice in choices if choice not in taken])
        kind = task.kinds[key]
        if kind in _NAMES and not held_out and rng.random() < MADE_UP:
            return _made_up(rng)
        return self.values[kind].draw(rng, taken, held_out=held_out)


def renamed(definition: Message, rng: random.Random) -> tuple[Message, dict[str, str]]:
    """The tool under other names, and what it and its parameters are called then."""
    function = definition["function"]
    words = function["name"].split("_")
    camel = words[0] + "".join(word.capitalize() for word in words[1:])
    name = rng.choice([camel, f"get_{function['name']}", f"{words[-1]}_tool", "-".join(words)])
    schema = function["parameters"]
    keys = {key: rng.choice(_SYNONYMS.get(key, (key,))) for key in schema["properties"]}
    parameters = {
        "type": "object",
        "properties": {keys[key]: value for key, value in schema["properties"].items()},
        "required": [keys[key] for key in schema["required"]],
    }
    other = {"name": name, "description": function["description"], "parameters": parameters}
    return {"type": "function", "function": other}, {function["name"]: name, **keys}


_SYNONYMS = {
    "city": ("town", "location", "city_name"),
    "days": ("num_days", "period"),
    "minutes": ("duration", "mins"),
    "time": ("when", "at"),
    "day": ("date", "weekday"),
    "amount": ("value", "money"),
    "symbol": ("ticker", "stock"),
    "text": ("content", "phrase"),
    "language": ("target", "lang"),
    "item": ("product", "thing"),
    "quantity": ("count", "how_many"),
    "title": ("name", "query"),
    "room": ("place", "area"),
    "degrees": ("temperature", "celsius"),
    "dish": ("meal", "food"),
    "servings": ("people", "portions"),
    "flight": ("flight_number", "code"),
    "word": ("term", "entry"),
    "to": ("recipient", "receiver"),
    "from": ("source", "sender"),
    "subject": ("topic", "about"),
    "name": ("person", "contact"),
    "people": ("guests", "party_size"),
    "place": ("what", "category"),
    "expression": ("formula", "input"),
    "team": ("club", "side"),
}


def _made_up(rng: random.Random) -> str:
    """One or two words of two or three syllables."""

    def word() -> str:
        syllables = rng.choice((2, 2, 3))
        parts = (rng.choice(_BEGINNINGS) + rng.choice(_VOWELS) + rng.choice(_ENDS) for _ in range(syllables))
        return "".join(parts).capitalize()

    return word() if rng.random() < 0.7 else f"{word()} {word()}"


def _filled(match: re.Match[str], rng: random.Random) -> str:
    """What a form's sign stands for; no number begins with a zero."""
    sign, text, at = match[0], match.string, match.start()
    if sign == "?":
        return rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    if sign in "%&":
        return f"{rng.randrange(24 if sign == '%' else 60):02}"
    return str(rng.randrange(1 if at == 0 or text[at - 1] == " " else 0, 10))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def _listed(text: str) -> tuple[Any, ...]:
    return tuple(_parsed(part) for part in text.split(", "))


def _fill(text: str, values: Mapping[str, Any]) -> str:
    return _PLACE.sub(lambda match: str(values[match[1]]), text)
