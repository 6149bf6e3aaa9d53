"""What is written on the command line of tenants: names, times, notes and limits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from manylora.server.client.errors import Unusable
from manylora.server.client.tenants import TenantFields

Name = Annotated[str, typer.Argument(metavar="TENANT", show_default=False)]

_TIME: Final = re.compile(r"(\d{1,12})([smhd]?)")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str | None) -> int | None:
    """Seconds from ``90``, ``15m``, ``12h`` or ``30d``.

    Raises:
        Unusable: it is no time.
    """
    if text is None:
        return None
    found = _TIME.fullmatch(text)
    if found is None:
        raise Unusable(f"{text!r} is not a time such as 3600, 90m, 12h or 30d")
    return int(found[1]) * _SECONDS[found[2]]


def notes_of(texts: Sequence[str]) -> dict[str, str]:
    """Notes from ``KEY=VALUE``; empty texts are none.

    Raises:
        Unusable: one has no "=".
    """
    texts = [text for text in texts if text]
    for text in texts:
        if "=" not in text:
            raise Unusable(f"{text!r} is not KEY=VALUE")
    return dict(text.split("=", 1) for text in texts)


def limits_of(texts: Sequence[str]) -> dict[str, int]:
    """Limits from ``WHAT=NUMBER``; the server knows what there is to be limited.

    Raises:
        Unusable: one is no such text.
    """
    found = notes_of(texts)
    for what, number in found.items():
        if not (number.isascii() and number.isdecimal() and len(number) < 17):
            raise Unusable(f"{what}={number} is not WHAT=NUMBER")
    return {what: int(number) for what, number in found.items()}


def adapter_limits_of(texts: Sequence[str]) -> dict[str, dict[str, int]]:
    """Limits by adapter from ``ADAPTER=WHAT=NUMBER``.

    Raises:
        Unusable: one is no such text.
    """
    found: dict[str, dict[str, int]] = {}
    for text in filter(None, texts):
        adapter, equals, limit = text.partition("=")
        if not (adapter and equals):
            raise Unusable(f"{text!r} is not ADAPTER=WHAT=NUMBER")
        found.setdefault(adapter, {}).update(limits_of([limit]))
    return found


@dataclass(frozen=True)
class Settings:
    """What options say of a tenant's settings; None where they say nothing."""

    adapter: Sequence[str] | None
    base: bool | None
    default_adapter: str | None
    weight: float | None
    limit: Sequence[str] | None
    adapter_limit: Sequence[str] | None
    note: Sequence[str] | None

    def fields(self) -> TenantFields:
        """What is given.

        Raises:
            Unusable: a text is malformed.
        """
        told: TenantFields = {}
        if self.adapter is not None:
            told["adapters"] = [each for each in self.adapter if each]
        if self.base is not None:
            told["base"] = self.base
        if self.default_adapter is not None:
            told["default_adapter"] = self.default_adapter
        if self.weight is not None:
            told["weight"] = self.weight
        if self.limit is not None:
            told["limits"] = limits_of(self.limit)
        if self.adapter_limit is not None:
            told["adapter_limits"] = adapter_limits_of(self.adapter_limit)
        if self.note is not None:
            told["metadata"] = notes_of(self.note)
        return told
