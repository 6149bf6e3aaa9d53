"""Numbers of a config that differ from module to module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.patterns import Deadline
from manylora.adapters.format.config.reader import ConfigReader, Number
from manylora.adapters.format.config.targets import by_pattern
from manylora.adapters.format.faults import Faults


@dataclass(frozen=True, slots=True)
class PerModule(Generic[Number]):
    """A number, and the patterns for the modules that have another."""

    key: str  # of the patterns
    default: Number
    patterns: Mapping[str, Number]

    def of(self, modules: Sequence[TargetModule], faults: Faults) -> dict[str, Number]:
        """The number of each module, with PEFT's matching: the first pattern that fits wins."""
        names = [module.name for module in modules]
        found = by_pattern(self.key, self.patterns, names, Deadline(), faults)
        return {name: found.get(name, self.default) for name in names}


def read_ranks(reader: ConfigReader, default: int) -> PerModule[int]:
    """``r`` and ``rank_pattern``."""
    rank = reader.rank("r", reader.value("r", default))
    return PerModule("rank_pattern", rank, reader.pattern("rank_pattern", reader.rank))


def read_alphas(reader: ConfigReader, default: int) -> PerModule[float]:
    """``alpha`` and ``alpha_pattern``."""
    alpha = reader.alpha("alpha", reader.value("alpha", default))
    return PerModule("alpha_pattern", alpha, reader.pattern("alpha_pattern", reader.alpha))
