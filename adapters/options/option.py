"""How one field of an options model looks on the command line, in its help and in the reference pages."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from manylora.adapters.options.values import format_size, parse_size


@dataclass(frozen=True, slots=True)
class Option:
    """How one field looks to people; stands in the field's ``Annotated`` type."""

    panel: str  # the heading that it stands under
    metavar: str  # what the value is called in the help; empty for a switch
    meaning: str
    why: str = ""  # the reason for the default
    default: str | None = None  # the default in words, where the value itself says little
    repeatable: bool = False  # the flag may be given several times
    switch: bool = False  # a pair of flags without a value: --x and --no-x
    without: str = ""  # what the --no-x of a switch means


def option_of(field: FieldInfo) -> Option:
    """The :class:`Option` of a field; every field of an options model carries one."""
    return next(item for item in field.metadata if isinstance(item, Option))


def flag_of(name: str) -> str:
    """The flag of a field: ``learning_rate`` -> ``--learning-rate``."""
    return "--" + name.replace("_", "-")


def off_flag_of(name: str) -> str:
    """The flag that turns a switch off: ``use_dora`` -> ``--no-use-dora``, ``enable_x`` -> ``--no-x``."""
    return flag_of("no_" + name.removeprefix("enable_"))


def default_text(field: FieldInfo) -> str | None:
    """The default of a field as people read it; ``None`` where it is nothing."""
    option, value = option_of(field), field.default
    if option.default is not None:
        return option.default
    if value is None or value in ([], {}, ()):
        return None
    if isinstance(value, bool):
        return "on" if value else "off"
    if any(isinstance(item, BeforeValidator) and item.func is parse_size for item in field.metadata):
        return format_size(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
