"""Rendezvous hashing: which of many replicas a key belongs to, agreed upon without a word between routers.

Each pair of key and replica has a weight of its own, and a key belongs to the replicas of the highest
weights. When a replica goes, only its own keys move; when one comes, it takes its share of all others' and no
key moves between these. (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.)
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from heapq import nlargest

_MASK = 2**64 - 1
_KEPT = 50_000  # keys whose order is remembered
_SHORT = 8  # replicas of an order that are remembered; whoever wants more has the order made again


def hashed(text: str) -> int:
    """64 bits that depend on nothing but ``text``: the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def weight(key: int, replica: int) -> int:
    """The weight of a pair, both hashed: 64 bits that look random (the finalizer of splitmix64)."""
    mixed = (key ^ replica) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


class Rendezvous:
    """The homes of keys among a set of replicas. What was worked out is kept until the set changes."""

    def __init__(self) -> None:
        self._replicas: dict[str, int] = {}
        self._kept: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replicas)

    def set_replicas(self, replicas: Iterable[str]) -> None:
        """There are these now, and no others."""
        wanted = set(replicas)
        if wanted != self._replicas.keys():
            self._replicas = {replica: hashed(replica) for replica in sorted(wanted)}
            self._kept.clear()

    def homes(self, key: str, count: int) -> tuple[str, ...]:
        """The ``count`` replicas that ``key`` belongs to, the first one first; all if there are fewer."""
        if count > _SHORT:
            return self._order(key, count)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = self._order(key, _SHORT)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return kept[:count]

    def _order(self, key: str, count: int) -> tuple[str, ...]:
        own = hashed(key)
        return tuple(
            nlargest(count, self._replicas, key=lambda replica: weight(own, self._replicas[replica]))
        )
