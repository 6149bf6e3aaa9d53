"""Who the engine works for, as far as it has to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Client:
    """Who shares the engine: a tenant, or all who have none."""

    name: str = ""
    weight: float = 1.0  # the share of the engine, relative to others'


EVERYBODY: Final = Client()
