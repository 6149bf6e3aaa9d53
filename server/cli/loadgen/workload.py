"""Workloads: which adapters each request names, and the notation for them on the command line.

KIND[:ADAPTERS][@CLIENTS]      distinct:32   zipf:64@32   base@8   mix:32
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal, get_args

Kind = Literal["base", "distinct", "uniform", "zipf", "identical", "mix"]
ZIPF_EXPONENT = 1.5

_SPEC = re.compile(r"([a-z]+)(?::(\d+))?(?:@(\d+))?")


@dataclass(frozen=True, slots=True)
class Workload:
    """Which adapters the requests of a load name, and how many clients send them.

    base: no adapter. distinct: client c always uses adapter c. uniform, zipf: drawn for each request.
    identical: all use adapter 0. mix: two adapters with weight 0.5 each, the pairs distinct by client.
    """

    kind: Kind
    adapters: int
    clients: int

    @property
    def name(self) -> str:
        """The workload's notation, as :func:`parse_workload` reads it."""
        count = f":{self.adapters}" if self.adapters else ""
        return f"{self.kind}{count}@{self.clients}"

    def members(self, client: int, request: int, seed: str) -> tuple[int, ...]:
        """Indices of the adapters that this request runs with; a function of the arguments alone."""
        match self.kind:
            case "base":
                return ()
            case "distinct":
                return (client % self.adapters,)
            case "identical":
                return (0,)
            case "mix":
                return (client % self.adapters, (client + 1) % self.adapters)
        rng = random.Random(f"{seed}/{client}/{request}")
        if self.kind == "uniform":
            return (rng.randrange(self.adapters),)
        return (rng.choices(range(self.adapters), cum_weights=_zipf(self.adapters))[0],)


@lru_cache(maxsize=8)
def _zipf(count: int) -> tuple[float, ...]:
    return tuple(accumulate((rank + 1) ** -ZIPF_EXPONENT for rank in range(count)))


def model_string(members: Sequence[str], base: str) -> str:
    """The model string of a request: the base, one adapter, or a mix of equal weights that sum to 1."""
    if len(members) < 2:
        return members[0] if members else base
    return "+".join(f"{member}*{1 / len(members):g}" for member in members)


def parse_workload(text: str) -> Workload:
    """A workload from its notation, as ``zipf:64@32``; without ``@32`` each adapter has a client.

    Raises:
        ValueError: saying what is wrong.
    """
    found = _SPEC.fullmatch(text)
    if found is None or found[1] not in get_args(Kind):
        raise ValueError(
            f"{text!r} is not KIND[:ADAPTERS][@CLIENTS] with KIND one of {', '.join(get_args(Kind))}"
        )
    kind: Kind = found[1]  # type: ignore[assignment]  # checked the line before
    adapters = int(found[2] or 0)
    clients = int(found[3] or adapters or 1)
    least = {"base": 0, "mix": 2}.get(kind, 1)
    if adapters < least or (kind == "base" and adapters) or clients < 1:
        raise ValueError(f"{text!r}: {kind} takes {'no' if kind == 'base' else f'at least {least}'} adapters")
    return Workload(kind, adapters, clients)
