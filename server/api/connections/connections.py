"""Which connections may stay open: how many in all and from one address, and which go when room is needed."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final, Protocol

from manylora.server.options.settings import Settings

RESERVED: Final = 64  # connections beyond the bound, on which only probes are answered
_SWEEP_SECONDS = 1.0  # between looks at all connections; shorter where a limit is short
_SUBNET_BITS = 64  # of an IPv6 address that are one sender's


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds on connections; times in seconds, the rate in bytes a second."""

    total: int
    per_address: int
    head: float  # for a request's line and headers, and for the first byte of a new connection
    body: float  # without a byte of a body
    write: float  # without a byte taken by the client
    idle: float  # between two requests
    rate: int  # that bodies, and clients that lag behind, must keep up over all

    @property
    def sweep(self) -> float:
        """Seconds between looks at all connections."""
        return min(_SWEEP_SECONDS, min(self.head, self.body, self.write, self.idle) / 4)


def connection_limits(settings: Settings, total: int | None = None) -> ConnectionLimits:
    """The limits that the settings ask for; ``total`` where the machine has room for fewer connections."""
    total = settings.max_connections if total is None else min(total, settings.max_connections)
    wanted = settings.max_connections_per_address
    return ConnectionLimits(
        total=total,
        per_address=max(1, total // 2) if wanted is None else min(wanted, total),
        head=settings.head_timeout,
        body=settings.body_timeout,
        write=settings.write_timeout,
        idle=settings.keep_alive_timeout,
        rate=settings.min_transfer_rate,
    )


class Connection(Protocol):
    """A connection as it is seen from here."""

    def check(self, now: float) -> None:
        """Close it if its time for something is over; ``now`` is of the event loop's clock."""

    def drop(self) -> None:
        """Close it at once."""


class Connections:
    """All connections of a server. Lives on its event loop."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[Connection, str | None] = {}  # with the sender
        self._reserved: dict[Connection, None] = {}  # oldest first
        self._waiting: dict[Connection, None] = {}  # without a whole request, the longest waiting first
        self._by_sender: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open) + len(self._reserved)

    def enter(self, connection: Connection, host: str | None) -> bool:
        """Count a new connection; false if it came beyond a bound and may only ask for probes.

        With all connections taken, the one that has waited longest for a request to come gives way.
        """
        self._schedule()
        sender = None if host is None else sender_of(host)
        taken = sender is not None and self._by_sender[sender] >= self.limits.per_address
        if not taken and len(self._open) >= self.limits.total and self._waiting:
            self._remove(next(iter(self._waiting)))
        if taken or len(self._open) >= self.limits.total:
            if len(self._reserved) >= RESERVED:
                self._remove(next(iter(self._reserved)))
            self._reserved[connection] = None
            return False
        self._open[connection] = sender
        self._waiting[connection] = None
        if sender is not None:
            self._by_sender[sender] += 1
        return True

    def busy(self, connection: Connection) -> None:
        """A request's head has come whole."""
        self._waiting.pop(connection, None)

    def waits(self, connection: Connection) -> None:
        """An answer is complete: the connection waits for another request."""
        if connection in self._open:
            self._waiting[connection] = None

    def leave(self, connection: Connection) -> None:
        """A connection is closed; once is enough."""
        self._reserved.pop(connection, None)
        self._waiting.pop(connection, None)
        sender = self._open.pop(connection, None)
        if sender is not None:
            self._by_sender[sender] -= 1
            if not self._by_sender[sender]:
                del self._by_sender[sender]

    def _remove(self, connection: Connection) -> None:
        self.leave(connection)
        connection.drop()

    def _schedule(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limits.sweep, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for connection in [*self._open, *self._reserved]:
            connection.check(now)
        if len(self):
            self._schedule()


def sender_of(host: str) -> str:
    """Whom an address is counted as: an IPv4 address for itself, an IPv6 address with all of its subnet."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> _SUBNET_BITS << _SUBNET_BITS))
    return host
