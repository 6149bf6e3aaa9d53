"""What the parser and the documentation know about a kind of adapter that changes weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import Option
from manylora.adapters.format.update import KindSettings


@dataclass(frozen=True)
class WeightKind:
    """One ``peft_type`` whose target modules each get a :class:`WeightUpdate`."""

    peft_type: str
    options: tuple[Option, ...]  # every key of its config
    parse: Callable[[ConfigReader], KindSettings]  # its own keys; the common ones are read by the parser
    endings: tuple[str, ...]  # of the names of its modules' tensors, behind the module's name and a dot
    form: str  # for the documentation: the change, as a formula
    rank: str  # for the documentation: rank pages of a module
    cost: str  # for the documentation, in words
    strings_ignore_layers: bool = False  # PEFT takes layers_to_transform beside a regular expression
    shared: tuple[str, ...] = ()  # what the names of tensors begin with that are of no one module


Kinds = Mapping[str, WeightKind]  # by peft_type
