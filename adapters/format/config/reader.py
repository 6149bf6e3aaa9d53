"""Typed access to the keys of an ``adapter_config.json``, as people and tools write them.

A value counts as what it equals: 4.0 and "4" are the number 4, and 0, 1 and "true" are flags. null leaves a
key at PEFT's default. What is no number, no flag and no name stays a fault.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from manylora.adapters.format.faults import Faults, shown

MAX_ALPHA = 1e6
MAX_TOKEN = 1 << 31
MAX_RANK = 65536  # of a config; the server's own limit is far lower

Number = TypeVar("Number", int, float)
Selector = str | frozenset[str]  # a regular expression, or names matched by their last components


class Bias(StrEnum):
    """Which biases of the base the adapter replaces."""

    NONE = "none"
    TARGETS = "targets"  # of the target modules: PEFT's "lora_only", "vera_only", ...
    ALL = "all"


_BIASES = {"": Bias.NONE, "none": Bias.NONE, "all": Bias.ALL}
_OF_TARGETS = re.compile(r"[a-z0-9]{1,16}_only")  # with a kind's name, which PEFT does not read


_DECIMAL = re.compile(r"[+-]?\d{1,40}(\.\d{0,40})?([eE][+-]?\d{1,3})?", re.ASCII)
_FLAGS = {"true": True, "false": False, "1": True, "0": False}


def number_of(value: object) -> int | float | None:
    """The finite number that ``value`` is or spells; None for anything else, flags included."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        value = float(value) if re.search(r"[.eE]", value) else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def integer_of(value: object) -> int | None:
    """The integer that ``value`` equals: 4, 4.0 and "4" are one; None for anything else."""
    number = number_of(value)
    return None if number is None or number != int(number) else int(number)


def flag_of(value: object) -> bool | None:
    """The flag that ``value`` is, or is written for: true, 1, "true"; None for anything else."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


class ConfigReader:
    """Typed access to the keys of one config; a wrong type is a fault and yields a harmless stand-in."""

    def __init__(self, config: Mapping[str, Any], faults: Faults) -> None:
        self._config = config
        self._faults = faults

    def rank(self, where: str, value: object) -> int:
        """A whole number from 1 to ``MAX_RANK`` (``true`` is not one)."""
        rank = integer_of(value)
        if rank is not None and 1 <= rank <= MAX_RANK:
            return rank
        self.wrong(where, f"a positive integer up to {MAX_RANK}", value)
        return 1

    def count(self, key: str, default: int, *, least: int = 1, most: int = MAX_RANK) -> int:
        """A whole number in that range; absent and null are the default."""
        value = self._config.get(key)
        number = default if value is None else integer_of(value)
        if number is not None and least <= number <= most:
            return number
        self.wrong(key, f"a whole number from {least} to {most}", value)
        return default

    def count_of(self, where: str, value: object, *, most: int) -> int:
        """A whole number from 1 to ``most``."""
        number = integer_of(value)
        if number is not None and 1 <= number <= most:
            return number
        self.wrong(where, f"a whole number from 1 to {most}", value)
        return 1

    def number(
        self, key: str, default: float, *, least: float = -MAX_ALPHA, most: float = MAX_ALPHA
    ) -> float:
        """A number in that range; absent and null are the default."""
        return float(self.number_of(key, self.value(key, default), least=least, most=most))

    def number_of(
        self, where: str, value: object, *, least: float = -MAX_ALPHA, most: float = MAX_ALPHA
    ) -> int | float:
        """A number in that range, whole or not as it is written."""
        number = number_of(value)
        if number is not None and least <= number <= most:
            return number
        self.wrong(where, f"a number from {least:g} to {most:g}", value)
        return least

    def random_seed(self, key: str, default: int) -> int:
        """A seed of a random generator; absent and null are the default."""
        return self.count(key, default, least=-(1 << 63), most=(1 << 64) - 1)

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        """One of a few words; absent and null are the default."""
        value = self.value(key, default)
        if isinstance(value, str) and value in choices:
            return value
        self.wrong(key, f"one of {', '.join(choices)}", value)
        return default

    def value(self, key: str, default: object) -> object:
        """The value as it is written; absent and null are the default."""
        value = self._config.get(key)
        return default if value is None else value

    def alpha(self, where: str, value: object) -> float:
        """A positive number up to ``MAX_ALPHA``."""
        number = number_of(value) or 0
        if 0 < number <= MAX_ALPHA:
            return float(number)
        hint = " (to subtract an adapter, give it a negative weight in a mix)" if number < 0 else ""
        self.wrong(where, f"a number above 0 and up to {MAX_ALPHA:g}", value, hint)
        return 1.0

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false; absent, null and an empty text are the default."""
        value = self._config.get(key)
        flag = default if value in (None, "") else flag_of(value)
        if flag is None:
            self.wrong(key, "true or false", value)
        return bool(flag)

    def choice_or_flag(self, key: str, choices: Sequence[str]) -> str | None:
        """One of ``choices``; None for true, false, absent and null, which are allowed as well."""
        value = self._config.get(key)
        if value in (None, "") or flag_of(value) is not None:
            return None
        text = value.strip().lower() if isinstance(value, str) else ""
        if text in choices:
            return text
        self.wrong(key, f"true, false or {' or '.join(map(repr, map(str, choices)))}", value)
        return None

    def bias(self) -> Bias:
        """The value of ``bias``: which biases of the base are replaced."""
        value = self._config.get("bias")
        if not value:  # null, false or empty
            return Bias.NONE
        text = value.strip().lower() if isinstance(value, str) else "?"
        if text in _BIASES:
            return _BIASES[text]
        if _OF_TARGETS.fullmatch(text):
            return Bias.TARGETS
        self.wrong("bias", "'none', 'all' or '..._only'", value)
        return Bias.NONE

    def share(self, key: str, default: float) -> float:
        """A number from 0 to 1; absent and null are the default."""
        value = self._config.get(key)
        number = default if value is None else number_of(value)
        if number is not None and 0 <= number <= 1:
            return float(number)
        self.wrong(key, "a number from 0 to 1", value)
        return default

    def seed(self, key: str, default: int, *, saved: str, saved_by_default: bool = True) -> int | None:
        """The seed of what is drawn anew; None where the flag ``saved`` says that the file holds it."""
        value = self._config.get(saved)
        flag = saved_by_default if value is None else flag_of(value)
        if flag is None:
            self.wrong(saved, "true or false", value)
        if flag:
            return None
        value = self._config.get(key)
        seed = default if value is None else integer_of(value)
        if seed is not None and 0 <= seed < 1 << 63:
            return seed
        self.wrong(key, "a seed of at most 63 bits", value)
        return default

    def masks(self, key: str, length: int) -> dict[str, list[bool]]:
        """An object from names to lists of that many flags; absent and null are empty."""
        value = self._config.get(key)
        if value is None or value == "":
            return {}
        masks: dict[str, Any] = value if isinstance(value, dict) else {"": None}
        for mask in masks.values():
            if not isinstance(mask, list) or len(mask) != length or None in map(flag_of, mask):
                self.wrong(key, f"an object from names to lists of {length} flags", value)
                return {}
        return {name: [bool(flag_of(flag)) for flag in mask] for name, mask in masks.items()}

    def text(self, key: str) -> str | None:
        """A string or null."""
        value = self._config.get(key)
        if value is None or isinstance(value, str):
            return value
        self.wrong(key, "a string or null", value)
        return None

    def selector(self, key: str) -> Selector:
        """A regular expression or a list of names; absent and null are the empty list."""
        value = self._config.get(key)
        return value if isinstance(value, str) else frozenset(self._strings(key, value))

    def names(self, key: str, limit: int) -> tuple[str, ...]:
        """A name or a short list of names."""
        value = self._config.get(key)
        names = self._strings(key, [value] if isinstance(value, str) and value else value or None)
        if len(names) > limit:
            self._faults.add(f"{key} has {len(names)} entries; the limit is {limit}")
            return ()
        return names

    def indices(self, key: str) -> frozenset[int]:
        """A block number or a list of them."""
        value = self._config.get(key)
        values = [] if value in (None, "") else value if isinstance(value, list) else [value]
        indices = [integer_of(each) for each in values]
        if None not in indices:
            return frozenset(index for index in indices if index is not None)
        self.wrong(key, "an integer or a list of integers", value)
        return frozenset()

    def tokens_by_table(self, key: str) -> dict[str, tuple[int, ...]]:
        """A list of token ids, or one for each of several names; a list alone goes under ""."""
        value = self._config.get(key)
        if value in (None, "", [], {}):
            return {}
        listed = value if isinstance(value, dict) else {"": value}
        result = {}
        for name, tokens in listed.items():
            ids = tokens if isinstance(tokens, list) else []
            ids = [t for t in map(integer_of, ids) if t is not None and 0 <= t < MAX_TOKEN]
            if not isinstance(tokens, list) or not tokens or len(ids) < len(tokens):
                self.wrong(key, "a list of token ids, or an object from names to such lists", value)
                return {}
            result[name] = tuple(ids)
        return result

    def tokens(self, key: str, limit: int, *, least: int = 1) -> tuple[int, ...] | None:
        """A list of at least so many token ids; absent and null are None."""
        value = self._config.get(key)
        if value is None:
            return None
        listed = value if isinstance(value, list) else []
        ids = [t for t in map(integer_of, listed) if t is not None and t >= 0]
        if isinstance(value, list) and least <= len(ids) == len(listed) <= limit:
            return tuple(ids)
        self.wrong(key, f"a list of {least} to {limit} token ids", value)
        return None

    def pattern(self, key: str, read: Callable[[str, object], Number]) -> dict[str, Number]:
        """An object from patterns to values that ``read`` checks; absent and null are empty."""
        value = self._config.get(key)
        if value in (None, ""):
            return {}
        if isinstance(value, dict):
            return {pattern: read(f"{key}[{shown(pattern)}]", entry) for pattern, entry in value.items()}
        self.wrong(key, "an object from patterns to values", value)
        return {}

    def _strings(self, key: str, value: object) -> tuple[str, ...]:
        if value is None or value is False:
            return ()
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return tuple(value)
        self.wrong(key, "a string or a list of strings", value)
        return ()

    def wrong(self, where: str, wanted: str, value: object, hint: str = "") -> None:
        """Record that the value at ``where`` is not what is ``wanted`` there."""
        self._faults.add(f"{where} should be {wanted} but the value passed is {shown(value)}{hint}")
