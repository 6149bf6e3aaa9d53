"""Rendezvous hashing: which of many replicas a key belongs to, agreed upon without a word between routers.

Each pair of key and replica has a weight of its own, and a key belongs to the replicas of the highest
weights. When a replica goes, only its own keys move; when one comes, it takes its share of all others' and no
key moves between these. (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.)
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_KEPT = 50_000  # keys whose order is remembered
_SHORT = 8  # replicas of an order that are remembered; whoever wants more has the order made again


def hashed(text: str) -> int:
    """64 bits that depend on nothing but ``text``: the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def weights(key: int, replicas: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The weights of a key with each replica, all hashed: 64 bits that look random.

    The function is the finalizer of splitmix64 (Steele, Lea and Flood, 2014).
    """
    mixed = np.uint64(key) ^ replicas
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


class Rendezvous:
    """The homes of keys among a set of replicas. What was worked out is kept until the set changes."""

    def __init__(self) -> None:
        self._replicas: tuple[str, ...] = ()  # sorted
        self._hashes = np.zeros(0, np.uint64)  # of those
        self._kept: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replicas)

    def set_replicas(self, replicas: Iterable[str]) -> None:
        """There are these now, and no others."""
        wanted = tuple(sorted(set(replicas)))
        if wanted != self._replicas:
            self._replicas = wanted
            self._hashes = np.array([hashed(replica) for replica in wanted], np.uint64)
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
        order = np.argsort(weights(hashed(key), self._hashes), kind="stable")[::-1]
        return tuple(self._replicas[index] for index in order[:count])
