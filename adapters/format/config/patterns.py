"""PEFT's rules for which module a pattern means, for patterns that nobody has vetted.

A config's regular expressions are run against every module name, and Python's own engine can take
longer than the age of the universe on a pattern of ten characters, holding the interpreter lock. So
they run in the linear-time engine of ``pydantic_core`` (Rust's ``regex``), which bounds the compiled
size; look-around and back-references do not exist there and are refused. For everything else the
answer to "does it match" is the same in both engines (a test compares them).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from time import monotonic

from pydantic_core import SchemaError, SchemaValidator, core_schema

from manylora.adapters.format.faults import shown

MAX_PATTERN = 4096  # characters
MAX_SECONDS = 1.0  # spent on all patterns of one config
_DOTTED = re.compile(r"[\w.]+", re.ASCII)
_FIRST_INDEX = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")  # the block's number in "model.layers.7.mlp"
_SET_OPERATION = re.compile(r"\[\[|\[:|&&|--|~~")  # set algebra in Rust, literal characters in Python


class PatternFault(Exception):
    """A pattern can't be used; ``str()`` is the reason."""


class Pattern:
    """A regular expression with Python's meaning and linear running time; matches whole names."""

    def __init__(self, expression: str) -> None:
        if len(expression) > MAX_PATTERN:
            raise PatternFault(f"has {len(expression):,} characters; the limit is {MAX_PATTERN:,}")
        if _SET_OPERATION.search(expression):
            raise PatternFault("uses set operations inside [...], which are not served")
        try:
            self._validator = SchemaValidator(core_schema.str_schema(pattern=f"^(?:{expression})$"))
        except SchemaError as error:
            reason = str(error).rpartition("error: ")[2] if "error: " in str(error) else "it is too large"
            raise PatternFault(f"is not a regular expression that is served: {reason.strip()}") from None

    def matches(self, name: str) -> bool:
        """Whether the whole of ``name`` matches."""
        return self._validator.isinstance_python(name)


class Deadline:
    """Bounds the time spent on one config's patterns."""

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._end = monotonic() + seconds

    def check(self) -> None:
        """Raise :class:`PatternFault` once the time is up."""
        if monotonic() > self._end:
            raise PatternFault("takes too long to match against the modules of the base")


def select(expression: str, names: Iterable[str], deadline: Deadline) -> frozenset[str]:
    """The names that a regular expression matches as a whole.

    Raises:
        PatternFault: not a pattern that is served, or out of time.
    """
    pattern = Pattern(expression)
    found = set()
    for name in names:
        deadline.check()
        if pattern.matches(name):
            found.add(name)
    return frozenset(found)


def assign(patterns: Iterable[str], names: Collection[str], deadline: Deadline) -> dict[str, str]:
    """For each name, the first pattern that fits it by PEFT's rule for ``rank_pattern``.

    A pattern fits when ``(.*\\.)?(pattern)$`` matches; a pattern that is literally the name fits where
    no other does. Names that none fits are left out.

    Raises:
        PatternFault: not a pattern that is served, or out of time; the message names the pattern.
    """
    patterns = tuple(patterns)
    if not patterns:
        return {}
    result: dict[str, str] = {}
    waiting = _Names(names)
    for expression in patterns:
        try:
            deadline.check()
            fitting = waiting.fitting(expression, deadline)
        except PatternFault as fault:
            raise PatternFault(f"{shown(expression)} {fault}") from None
        result |= dict.fromkeys(fitting, expression)
        waiting.names -= fitting
    return result | {name: name for name in waiting.names.intersection(patterns)}


class _Names:
    """Module names, with the lengths of their dotted endings, by which most patterns are ruled out."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = set(names)
        self._by_ending: dict[int, list[str]] = {}
        for name in names:
            ends = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
            for end in ends:
                self._by_ending.setdefault(len(name) - end, []).append(name)

    def fitting(self, expression: str, deadline: Deadline) -> set[str]:
        """The names that ``(.*\\.)?(expression)$`` matches."""
        if not _DOTTED.fullmatch(expression):
            return set(select(f"(?:.*\\.)?(?:{expression})", self.names, deadline))
        # "q_proj", or a full name as EVA writes by the hundred: only its dots stand for any character.
        literals = expression.split(".")
        return {
            name
            for name in self._by_ending.get(len(expression), ())
            if name.endswith(literals[-1]) and name in self.names and _fits(literals, name, len(expression))
        }


def _fits(literals: list[str], name: str, length: int) -> bool:
    """Whether the last ``length`` characters of ``name`` are ``literals`` with any character between."""
    position = len(name) - length
    for literal in literals:
        if not name.startswith(literal, position):
            return False
        position += len(literal) + 1
    return True


def block_index(name: str, layers_patterns: tuple[str, ...]) -> int | None:
    """The number of the block that ``name`` lies in, by PEFT's rule for ``layers_pattern``.

    Without patterns it is the first number after two dotted components; with them the number right
    after the first pattern that occurs.

    Raises:
        PatternFault: a pattern is more than the dotted name of a list of blocks.
    """
    if not layers_patterns:
        match = _FIRST_INDEX.match(name)
        return int(match["index"]) if match else None
    for expression in layers_patterns:
        if not _DOTTED.fullmatch(expression):
            raise PatternFault(f"{shown(expression)} is not the name of a list of blocks, such as 'layers'")
        match = re.match(rf"(?:^|.*?\.){expression}\.(?P<index>\d+)\.", name)
        if match:
            return int(match["index"])
    return None
