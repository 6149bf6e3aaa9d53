"""A revision as the server holds it: who uses it, and where its pages are."""

from __future__ import annotations

from dataclasses import dataclass

from manylora.server.kernels.inputs import AdapterPages


@dataclass(eq=False, slots=True)
class Revision:
    """Immutable weights, perhaps on the device. One object a digest, made when it is first asked for."""

    digest: str
    nbytes: int = 0  # on the device; 0 until it has been packed once
    references: int = 0  # resolved requests that have not ended, running or waiting for room
    leases: int = 0  # those among them that may run: its pages must stay
    pinned: bool = False  # some pinned name points here: its pages stay without a lease
    gone: bool = False  # freed: no name has it any more
    pages: AdapterPages | None = None
