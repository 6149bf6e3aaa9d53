"""Formulas over grades: ``0.7 * accuracy + 0.3 * min(style, 1)``. They are computed here, never run as code.

sum     := product (("+" | "-") product)*
product := sign (("*" | "/") sign)*
sign    := ("-" | "+") sign | power
power   := atom ["^" sign]
atom    := number | name | function "(" sum ("," sum)* ")" | "(" sum ")"
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Final

MAX_FORMULA: Final = 4096  # characters
MAX_DEPTH: Final = 64

FUNCTIONS: Final[Mapping[str, tuple[int, int, Callable[..., float]]]] = {  # fewest and most arguments
    "min": (1, 64, lambda *values: min(values)),
    "max": (1, 64, lambda *values: max(values)),
    "abs": (1, 1, abs),
    "floor": (1, 1, math.floor),
    "ceil": (1, 1, math.ceil),
    "exp": (1, 1, math.exp),
    "sqrt": (1, 1, math.sqrt),
    "log": (1, 1, math.log),
}
_TOKEN = re.compile(
    r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|(\S))", re.ASCII
)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)

Compute = Callable[[Mapping[str, float]], float]


class FormulaFault(Exception):
    """A formula is malformed, or has no finite value."""


def is_variable(name: str) -> bool:
    """Whether a grade may be called so in formulas."""
    return len(name) <= 64 and _NAME.fullmatch(name) is not None and name not in FUNCTIONS


def parse_formula(text: str, names: Collection[str]) -> Compute:
    """What computes a formula over grades called ``names``; it raises FormulaFault where there is no value.

    Raises:
        FormulaFault: it is malformed, or names something else.
    """
    if len(text) > MAX_FORMULA:
        raise FormulaFault(f"has more than {MAX_FORMULA:,} characters")
    parser = _Parser(text, names)
    found = parser.sum(0)
    if parser.token:
        raise FormulaFault(f"'{parser.token[:40]}' is not expected there")

    def compute(values: Mapping[str, float]) -> float:
        try:
            value = found(values)
        except (ZeroDivisionError, OverflowError, ValueError) as error:
            raise FormulaFault(f"can't be computed: {error}") from None
        if isinstance(value, complex) or not math.isfinite(value):
            raise FormulaFault("has no finite value")
        return float(value)

    return compute


class _Parser:
    """Recursive descent, at most ``MAX_DEPTH`` deep. Each method returns what computes its part."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        self._text, self._names, self._at = text, names, 0
        self.token = ""  # the next; "" at the end
        self._next()

    def _next(self) -> str:
        taken = self.token
        found = _TOKEN.match(self._text, self._at)
        self.token = "" if found is None else found[found.lastindex or 0]
        self._at = len(self._text) if found is None else found.end()
        return taken

    def sum(self, depth: int) -> Compute:
        return self._chain(depth, "+-", self._product)

    def _product(self, depth: int) -> Compute:
        return self._chain(depth, "*/", self._sign)

    def _chain(self, depth: int, operators: str, part: Callable[[int], Compute]) -> Compute:
        if depth > MAX_DEPTH:
            raise FormulaFault(f"is nested more than {MAX_DEPTH} deep")
        first = part(depth)
        rest: list[tuple[str, Compute]] = []
        while self.token and self.token in operators:
            operator = self._next()
            rest.append((operator, part(depth)))

        def compute(values: Mapping[str, float]) -> float:
            total = first(values)
            for operator, each in rest:
                total = _BINARY[operator](total, each(values))
            return total

        return compute if rest else first

    def _sign(self, depth: int) -> Compute:
        negative = False
        while self.token and self.token in "+-":
            negative ^= self._next() == "-"
        power = self._power(depth)
        return (lambda values: -power(values)) if negative else power

    def _power(self, depth: int) -> Compute:
        base = self._atom(depth)
        if self.token != "^":
            return base
        self._next()
        if depth > MAX_DEPTH:
            raise FormulaFault(f"is nested more than {MAX_DEPTH} deep")
        exponent = self._sign(depth + 1)
        return lambda values: _power(base(values), exponent(values))

    def _atom(self, depth: int) -> Compute:
        token = self._next()
        if token == "(":
            inner = self.sum(depth + 1)
            self._expect(")")
            return inner
        if token.isascii() and (token[:1].isdigit() or (token[:1] == "." and len(token) > 1)):
            number = float(token)
            return lambda _: number
        if self.token == "(" and token in FUNCTIONS:
            return self._call(token, depth)
        if token in self._names:
            return lambda values: float(values[token])
        what = f"'{token[:40]}' is not expected there" if token else "ends too early"
        raise FormulaFault(f"names '{token[:40]}', which is no grader" if _NAME.fullmatch(token) else what)

    def _call(self, name: str, depth: int) -> Compute:
        fewest, most, function = FUNCTIONS[name]
        self._expect("(")
        arguments = [self.sum(depth + 1)]
        while self.token == ",":
            self._next()
            arguments.append(self.sum(depth + 1))
        self._expect(")")
        if not fewest <= len(arguments) <= most:
            raise FormulaFault(f"{name}() does not take {len(arguments)} arguments")
        return lambda values: float(function(*(each(values) for each in arguments)))

    def _expect(self, token: str) -> None:
        if self.token != token:
            raise FormulaFault(f"'{token}' is missing")
        self._next()


def _power(base: float, exponent: float) -> float:
    return math.pow(base, exponent)


_BINARY: Final[Mapping[str, Callable[[float, float], float]]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}
