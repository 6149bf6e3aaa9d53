"""One revision as this server uses it: who holds it, and where its pages are."""

from __future__ import annotations

from dataclasses import dataclass

from manylora.server.kernels.inputs import AdapterPages


@dataclass(eq=False, slots=True)
class Revision:
    """Immutable weights, perhaps on the device. One object a digest, made when it is first asked for."""

    digest: str
    nbytes: int = 0  # on the device; 0 until it has been packed once
    references: int = 0  # held mixes that contain it, admitted or waiting for room
    admitted: int = 0  # those among them that may run: its pages must stay
    pinned: bool = False  # some pinned name points here: its pages stay though nothing runs
    gone: bool = False  # freed: no name has it any more
    pages: AdapterPages | None = None  # set while it is on the device; filled by the device cache
