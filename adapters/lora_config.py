"""``adapter_config.json`` of a LoRA adapter: parsed against the allow-list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from adapters.faults import Faults, shown
from adapters.support import INITS, KINDS, OPTIONS, Option, Treatment

MAX_ALPHA = 1e6
MAX_RANK = 65536  # of a config; the server's own limit is far lower
MAX_LAYERS_PATTERNS = 16
MAX_INVOCATION_TOKENS = 256

Number = TypeVar("Number", int, float)
Selector = str | frozenset[str]  # a regular expression, or names matched by their last components


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The part of the config that decides what the adapter computes. Absent keys have PEFT's defaults."""

    r: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: Selector
    exclude_modules: Selector
    layers_to_transform: frozenset[int]  # empty: all of them
    layers_patterns: tuple[str, ...]
    activation: tuple[int, ...] | None  # the tokens that switch an aLoRA on; None for any other adapter
    base_model_name: str | None  # only a hint
    peft_version: str | None


def parse_config(config: Mapping[str, Any], faults: Faults) -> LoraConfig | None:
    """Check every key of ``config``.

    None if it is not a LoRA config, or what it says about modules, ranks and alphas can't be read.
    Options that are refused are faults as well, but the rest of the config can then still be judged.
    """
    if not _check_kind(config, faults):
        return None
    _check_options(config, faults)
    _check_init(config.get("init_lora_weights", True), faults)
    _check_auto_mapping(config.get("auto_mapping"), faults)
    before = len(faults)
    reader = _Reader(config, faults)
    targets = reader.selector("target_modules")
    if config.get("target_modules") in (None, "", []):
        faults.add("target_modules is missing or empty: name the modules that the adapter changes")
    indices = reader.indices("layers_to_transform")
    patterns = reader.names("layers_pattern", MAX_LAYERS_PATTERNS)
    if isinstance(targets, str) and (indices or patterns):
        faults.add("layers_to_transform and layers_pattern cannot be used when target_modules is a string")
    if patterns and not indices:
        faults.add("when layers_pattern is specified, layers_to_transform must also be specified")
    result = LoraConfig(
        r=reader.rank("r", config.get("r", 8)),
        alpha=reader.alpha("lora_alpha", config.get("lora_alpha", 8)),
        use_rslora=reader.flag("use_rslora"),
        rank_pattern=reader.pattern("rank_pattern", reader.rank),
        alpha_pattern=reader.pattern("alpha_pattern", reader.alpha),
        target_modules=targets,
        exclude_modules=reader.selector("exclude_modules"),
        layers_to_transform=indices,
        layers_patterns=patterns,
        activation=reader.tokens("alora_invocation_tokens", MAX_INVOCATION_TOKENS),
        base_model_name=reader.text("base_model_name_or_path"),
        peft_version=reader.text("peft_version"),
    )
    return result if len(faults) == before else None


def _check_kind(config: Mapping[str, Any], faults: Faults) -> bool:
    peft_type = config.get("peft_type")
    if peft_type == "LORA":
        return True
    kind = next((kind for kind in KINDS if kind.peft_type == peft_type), None)
    if peft_type is None:
        faults.add("peft_type is missing: this is not the config of a PEFT adapter")
    elif kind is None:
        faults.add(f"peft_type {shown(peft_type)} is not a kind of adapter this server knows; LORA is served")
    else:
        faults.add(f"peft_type {kind.peft_type} is not served: {_because(kind.note, kind.remedy)}")
    return False


def _check_auto_mapping(value: Any, faults: Faults) -> None:
    """Nothing it names is ever imported; what names code of its own belongs to another kind of model."""
    if value is None:
        return
    library = value.get("parent_library") if isinstance(value, dict) else None
    if not isinstance(library, str) or library.partition(".")[0] != "transformers":
        faults.add(f"auto_mapping={shown(value)} does not name a class of transformers: set it to null")


def _check_options(config: Mapping[str, Any], faults: Faults) -> None:
    options = {option.key: option for option in OPTIONS}
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        faults.add(f"task_type {shown(task)} is not served: only CAUSAL_LM is")
    for key, value in config.items():
        option = options.get(key)
        if option is None:
            _check_unknown(key, value, faults)
        elif option.treatment is Treatment.REFUSED and not option.is_off(value):
            faults.add(_refusal(option, value))


def _refusal(option: Option, value: object) -> str:
    return f"{option.key}={shown(value)} is not served: {_because(option.note, option.remedy)}"


def _because(reason: str, remedy: str) -> str:
    return f"{reason} ({remedy})" if remedy else reason


def _check_unknown(key: str, value: object, faults: Faults) -> None:
    """Refuse an unknown key unless its value is empty.

    Options are added to PEFT switched off (null, false or empty), so that older configs keep their
    meaning; a newer config that does not use the new option therefore loads.
    """
    if value is None or value is False or value in ("", [], {}):
        return
    faults.add(f"{shown(key)} is not an option this server knows, and it is set to {shown(value)}")


def _check_init(value: object, faults: Faults) -> None:
    if isinstance(value, bool) or value is None:  # PEFT treats null as false
        return
    text = value.lower() if isinstance(value, str) else ""
    init = next((init for init in INITS if init.matches(text)), None)
    if init is None or init.value in ("true", "false"):
        faults.add(f"init_lora_weights={shown(value)} is not an initialization this server knows")
    elif init.treatment is Treatment.REFUSED:
        faults.add(f"init_lora_weights={shown(value)} is not served: {_because(init.note, init.remedy)}")


class _Reader:
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
