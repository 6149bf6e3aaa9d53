"""Typed access to the keys of an ``adapter_config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    TARGETS = "targets"  # of the target modules: PEFT's "lora_only" and "vera_only"
    ALL = "all"


_BIASES = {
    None: Bias.NONE,
    "none": Bias.NONE,
    "lora_only": Bias.TARGETS,
    "vera_only": Bias.TARGETS,
    "all": Bias.ALL,
}


class ConfigReader:
    """Typed access to the keys of one config; a wrong type is a fault and yields a harmless stand-in."""

    def __init__(self, config: Mapping[str, Any], faults: Faults) -> None:
        self._config = config
        self._faults = faults

    def rank(self, where: str, value: object) -> int:
        """A whole number from 1 to ``MAX_RANK`` (``true`` is not one)."""
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK:
            return value
        self._wrong(where, f"a positive integer up to {MAX_RANK}", value)
        return 1

    def alpha(self, where: str, value: object) -> float:
        """A positive number up to ``MAX_ALPHA``."""
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
        if 0 < number <= MAX_ALPHA:
            return float(number)
        hint = " (to subtract an adapter, give it a negative weight in a mix)" if number < 0 else ""
        self._wrong(where, f"a number above 0 and up to {MAX_ALPHA:g}", value, hint)
        return 1.0

    def flag(self, key: str) -> bool:
        """true or false; absent and null are false."""
        value = self._config.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        self._wrong(key, "true or false", value)
        return False

    def bias(self) -> Bias:
        """The value of ``bias``: which biases of the base are replaced."""
        value = self._config.get("bias")
        if value is None or (isinstance(value, str) and value in _BIASES):
            return _BIASES[value]
        self._wrong("bias", "'none', 'all' or '..._only'", value)
        return Bias.NONE

    def projection_key(self, kind: str) -> int | None:
        """VeRA's seed, if it has to be used."""
        if kind != "VERA" or self._config.get("save_projection", True) is True:
            return None
        if self._config["save_projection"] is not False:
            self._wrong("save_projection", "true or false", self._config["save_projection"])
        key = self._config.get("projection_prng_key", 0)
        if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < 1 << 63:
            return key
        self._wrong("projection_prng_key", "a seed of at most 63 bits", key)
        return 0

    def text(self, key: str) -> str | None:
        """A string or null."""
        value = self._config.get(key)
        if value is None or isinstance(value, str):
            return value
        self._wrong(key, "a string or null", value)
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
        values = [] if value is None else value if isinstance(value, list) else [value]
        if all(isinstance(index, int) and not isinstance(index, bool) for index in values):
            return frozenset(values)
        self._wrong(key, "an integer or a list of integers", value)
        return frozenset()

    def tokens_by_table(self, key: str) -> dict[str, tuple[int, ...]]:
        """A list of token ids, or one for each of several names; a list alone goes under ""."""
        value = self._config.get(key)
        if value in (None, [], {}):
            return {}
        listed = value if isinstance(value, dict) else {"": value}
        result = {}
        for name, tokens in listed.items():
            ids = tokens if isinstance(tokens, list) else []
            ids = [t for t in ids if isinstance(t, int) and not isinstance(t, bool) and 0 <= t < MAX_TOKEN]
            if not isinstance(tokens, list) or not tokens or len(ids) < len(tokens):
                self._wrong(key, "a list of token ids, or an object from names to such lists", value)
                return {}
            result[name] = tuple(ids)
        return result

    def tokens(self, key: str, limit: int) -> tuple[int, ...] | None:
        """A list of token ids that is not empty; absent and null are None."""
        value = self._config.get(key)
        if value is None:
            return None
        listed = value if isinstance(value, list) else []
        ids = [t for t in listed if isinstance(t, int) and not isinstance(t, bool) and t >= 0]
        if 0 < len(ids) == len(listed) <= limit:
            return tuple(ids)
        self._wrong(key, f"a list of 1 to {limit} token ids", value)
        return None

    def pattern(self, key: str, read: Callable[[str, object], Number]) -> dict[str, Number]:
        """An object from patterns to values that ``read`` checks; absent and null are empty."""
        value = self._config.get(key)
        if value is None:
            return {}
        if isinstance(value, dict):
            return {pattern: read(f"{key}[{shown(pattern)}]", entry) for pattern, entry in value.items()}
        self._wrong(key, "an object from patterns to values", value)
        return {}

    def _strings(self, key: str, value: object) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return tuple(value)
        self._wrong(key, "a string or a list of strings", value)
        return ()

    def _wrong(self, where: str, wanted: str, value: object, hint: str = "") -> None:
        self._faults.add(f"{where} should be {wanted} but the value passed is {shown(value)}{hint}")
