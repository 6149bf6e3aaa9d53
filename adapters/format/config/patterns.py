"""PEFT's rules for which module a pattern means, for patterns that nobody has vetted.

A config's regular expressions are run against every module name, and Python's own engine can take
longer than the age of the universe on a pattern of ten characters, holding the interpreter lock. So
simple ones run in the linear-time engine of ``pydantic_core`` (Rust's ``regex``), which bounds the compiled
size. Simple is what means the same in both engines (a test compares them). All others, such as those with
look-around, run in Python's engine in a process of their own, which is killed when it takes too long.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from time import monotonic
from typing import Literal

from pydantic_core import SchemaError, SchemaValidator, core_schema

from manylora.adapters.bounded_process import Bounds, ChildFailed, OutOfBounds, run_bounded
from manylora.adapters.format.faults import shown

MAX_PATTERN = 4096  # characters of a simple one
MAX_SECONDS = 1.0  # spent on all simple patterns of one config
MAX_CALLS = 16  # of the other process, for one config
BOUNDS = Bounds(seconds=2.0)  # of one such call
_DOTTED = re.compile(r"[\w.]+", re.ASCII)
_FIRST_INDEX = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")  # the block's number in "model.layers.7.mlp"
_SET_OPERATION = re.compile(r"\[\[|\[:|&&|--|~~")  # set algebra in Rust, literal characters in Python
_RULES = "manylora.adapters.format.config.regex_rules"

# Characters, classes and groups, each with at most one quantifier: no look-around, no flags, no possessive
# or repeated quantifiers, and no braces, brackets or escapes that the engines read in different ways.
_QUANTIFIER = r"(?:(?:[*+?]|\{\d+(?:,\d*)?\})\??)?"
_CLASS = r"\[\^?(?:[A-Za-z0-9_./]|\\[dws.]|-(?!-))+\]"
_SIMPLE = re.compile(
    rf"(?:(?:[A-Za-z0-9_./ -]|\\[dwsDWS.-]|{_CLASS}|\)){_QUANTIFIER}|\((?:\?:)?|[|^$]|\\b)*", re.ASCII
)

Rule = Literal["whole", "ending", "block"]
Fits = list[list[tuple[int, int | None]]]  # for each expression the names, by place, with their blocks


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
            SchemaValidator(core_schema.str_schema(pattern=expression))  # "a)|(b" is one in brackets only
            self._validator = SchemaValidator(core_schema.str_schema(pattern=f"^(?:{expression})$"))
        except SchemaError as error:
            reason = str(error).rpartition("error: ")[2] if "error: " in str(error) else "it is too large"
            raise PatternFault(f"is not a regular expression that is served: {reason.strip()}") from None

    def matches(self, name: str) -> bool:
        """Whether the whole of ``name`` matches."""
        return self._validator.isinstance_python(name)


class Deadline:
    """Bounds the time spent on one config's patterns."""

    def __init__(self, seconds: float = MAX_SECONDS, bounds: Bounds = BOUNDS) -> None:
        self._end = monotonic() + seconds
        self._bounds = bounds
        self._calls = 0

    def check(self) -> None:
        """Raise :class:`PatternFault` once the time is up."""
        if self._calls > MAX_CALLS or monotonic() > self._end:
            raise PatternFault("takes too long to match against the modules of the base")

    def match(self, expressions: Sequence[str], names: Sequence[str], rule: Rule) -> Fits:
        """What Python's own engine finds, in a process of its own, whose time is not counted here.

        Raises:
            PatternFault: not an expression, or out of time or memory; then every later check fails as well.
        """
        self._calls += 1
        self.check()
        before = monotonic()
        question = {"expressions": list(expressions), "names": list(names), "rule": rule}
        try:
            answer = run_bounded(_RULES, "match_names", question, self._bounds)
        except OutOfBounds as excess:
            self._end = before
            raise PatternFault(f"takes too long to match against the modules of the base: {excess}") from None
        except ChildFailed as failure:
            raise PatternFault(f"can't be matched: {shown(str(failure))[1:-1]}") from None
        self._end += monotonic() - before
        if "fault" in answer:
            which = "" if len(expressions) == 1 else f" ({shown(expressions[answer['expression']])})"
            raise PatternFault(f"is not a regular expression{which}: {shown(answer['fault'])[1:-1]}")
        fits: Fits = answer["fits"]
        return fits


def simple_pattern(expression: str) -> Pattern | None:
    """The expression for the linear-time engine; None where that might mean something else by it."""
    if len(expression) > MAX_PATTERN or not _SIMPLE.fullmatch(expression):
        return None
    try:
        return Pattern(expression)
    except PatternFault:  # too large for that engine, or no expression in either: the other one says
        return None


def select(expression: str, names: Iterable[str], deadline: Deadline) -> frozenset[str]:
    """The names that a regular expression matches as a whole.

    Raises:
        PatternFault: not a regular expression, or out of time.
    """
    pattern = simple_pattern(expression)
    if pattern is None:
        listed = list(names)
        (fits,) = deadline.match([expression], listed, "whole")
        return frozenset(listed[place] for place, _ in fits)
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
    others = _matched_elsewhere(patterns, sorted(names), deadline)
    for expression in patterns:
        try:
            deadline.check()
            fitting = others.get(expression)
            if fitting is None:
                fitting = waiting.fitting(expression, deadline)
        except PatternFault as fault:
            raise PatternFault(f"{shown(expression)} {fault}") from None
        fitting = fitting & waiting.names
        result |= dict.fromkeys(fitting, expression)
        waiting.names -= fitting
    return result | {name: name for name in waiting.names.intersection(patterns)}


def _matched_elsewhere(
    patterns: Sequence[str], names: Sequence[str], deadline: Deadline
) -> dict[str, set[str]]:
    """What those patterns fit that are not simple: all of them in one other process."""
    listed = [p for p in patterns if not _DOTTED.fullmatch(p) and not _SIMPLE.fullmatch(p)]
    if not listed:
        return {}
    try:
        fits = deadline.match(listed, names, "ending")
    except PatternFault as fault:
        raise PatternFault(f"{shown(listed[0])} {fault}" if len(listed) == 1 else f"it {fault}") from None
    return {
        pattern: {names[place] for place, _ in found} for pattern, found in zip(listed, fits, strict=True)
    }


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
        """The names that ``(.*\\.)?(expression)$`` matches, by a pattern that is simple."""
        if not _DOTTED.fullmatch(expression):
            if simple_pattern(expression) is None:
                listed = sorted(self.names)
                (fits,) = deadline.match([expression], listed, "ending")
                return {listed[place] for place, _ in fits}
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


def block_indices(
    names: Sequence[str], layers_patterns: tuple[str, ...], deadline: Deadline
) -> dict[str, int | None]:
    """The number of the block that each of ``names`` lies in, by PEFT's rule for ``layers_pattern``.

    Raises:
        PatternFault: not a regular expression, or out of time.
    """
    if all(_DOTTED.fullmatch(pattern) for pattern in layers_patterns):
        return {name: block_index(name, layers_patterns) for name in names}
    result: dict[str, int | None] = {}
    for fits in deadline.match(layers_patterns, names, "block"):  # the first that fits a name counts
        result = {names[place]: index for place, index in fits} | result
    return result


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
