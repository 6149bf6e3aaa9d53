"""The methods that train an adapter: one for each kind that is served, by its name in lower case.

A kind that comes to be served is either in :data:`METHODS` or has a reason in :data:`NOT_TRAINED`: a test
compares them with the table of kinds. That brings torch, and options are shown without. What the common
options mean to a kind is found in the fields of its PEFT config where it is built (``model/kinds.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from manylora.adapters.format.config.support import Option, Treatment

LORA, FULL = "lora", "full"
LORA_RATE, FULL_RATE, OTHER_RATE = 2e-4, 2e-5, 1e-3

METHODS = (
    LORA, FULL, "adalora", "beft", "boft", "c3a", "deft", "delora", "fourierft", "frod", "glora", "gralora",
    "hira", "hra", "ia3", "ln_tuning", "loha", "lokr", "miss", "oft", "osf", "p_tuning", "peanut",
    "prefix_tuning", "prompt_tuning", "psoft", "pvera", "randlora", "road", "shira", "supertuning",
    "tinylora", "trainable_tokens", "unilora", "vblora", "vera", "waveft",
)  # fmt: skip
NOT_TRAINED: Mapping[str, str] = MappingProxyType(
    {
        "BONE": "PEFT has MiSS in its place: --method miss",
        "CARTRIDGE": "it is distilled from the cache of a long text, which needs a loop of its own",
        "CPT": "its loss needs the kind of each token with every row",
        "MULTITASK_PROMPT_TUNING": "it needs the number of the task with every row",
        "POLY": "it needs the number of the task with every row",
        "XLORA": "it needs adapters that are trained already",
    }
)
PROMPTS = frozenset(("prompt_tuning", "p_tuning", "prefix_tuning"))  # what has virtual tokens

# Learning rates at which a kind learns, where that is far from OTHER_RATE: those that train few numbers,
# or numbers that are multiplied by small ones, take high rates.
_RATES: Mapping[str, float] = MappingProxyType(
    {
        LORA: LORA_RATE,
        FULL: FULL_RATE,
        "adalora": 5e-3,
        "ia3": 5e-3,
        "vera": 5e-3,
        "pvera": 5e-3,
        "vblora": 5e-3,
        "fourierft": 5e-3,
        "waveft": 5e-3,
        "c3a": 5e-3,
        "unilora": 0.1,
        "tinylora": 5e-3,
        "trainable_tokens": 5e-3,
        "prompt_tuning": 5e-2,
        "p_tuning": 2e-3,
        "prefix_tuning": 1e-2,
        "ln_tuning": 2e-3,
        "beft": 2e-3,
        "road": 2e-3,
    }
)

# Fields of PEFT's configs that options of the trainer or the trainer itself fill in.
_COMMON: Mapping[str, str] = MappingProxyType(
    {
        "target_modules": "target_modules",
        "modules_to_save": "modules_to_save",
        "rank_pattern": "rank_pattern",
        "alpha_pattern": "alpha_pattern",
        "r": "lora_r",
        "alpha": "lora_alpha",
        "lora_alpha": "lora_alpha",
    }
)
_OWN = ("peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "peft_version",
        "auto_mapping", "fan_in_fan_out", "bias", "total_step")  # fmt: skip


def check_method(value: str) -> str:
    """``value`` if it is a method.

    Raises:
        ValueError: it is none, with the reason where it is a kind that is not trained.
    """
    if value in METHODS:
        return value
    reason = NOT_TRAINED.get(value.upper())
    if reason is not None:
        raise ValueError(f"{value} is not trained: {reason}")
    raise ValueError(f"must be one of {', '.join(METHODS)}")


def rate_of(method: str) -> float:
    """The learning rate that a method begins with."""
    return _RATES.get(method, OTHER_RATE)


def option_faults(method: str, options: Mapping[str, object]) -> list[str]:
    """Why those further options of the PEFT config can't be set, each in a sentence."""
    if method in (LORA, FULL):
        return [f"{key} is set by an option of its own with method {method}" for key in options]
    from manylora.adapters.format.kinds.table import OPTIONS  # noqa: PLC0415  (brings torch)

    known: dict[str, Option] = {option.key: option for option in OPTIONS[method.upper()]}
    return [fault for key in options if (fault := _fault(method, key, known)) is not None]


def _fault(method: str, key: str, known: Mapping[str, Option]) -> str | None:
    if key in _COMMON:
        return f"{key} is set by {_COMMON[key]}"
    if key in _OWN:
        return f"{key} is set by the trainer"
    option = known.get(key)
    if option is None:
        names = ", ".join(sorted(known.keys() - _COMMON.keys() - {*_OWN}))
        return f"{method} has no {key}; there are {names}"
    if option.treatment is Treatment.REFUSED:
        return f"{key} is not served: {option.note}"
    return None
