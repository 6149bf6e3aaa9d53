"""What is written on the command line of tenants: names, times, notes and limits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from manylora.server.client.errors import Unusable

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
