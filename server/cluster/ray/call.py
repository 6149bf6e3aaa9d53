"""What the ingress, the router beside it and a replica tell each other about one request."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from manylora.server.cluster.asgi_call import RawRequest
from manylora.server.cluster.asked import Asked


@dataclass(slots=True)
class Note:
    """What the router says of a request to the ingress, in whose process it is. Replicas never see it."""

    replica: str | None = None  # where it went
    prefetch: list[tuple[str, str]] = field(default_factory=list)  # a replica, and what it should fetch
    counted: bool = False  # among what is asked of its adapters


class Call:
    """One request on its way to a replica. Pickled without its note."""

    def __init__(
        self,
        request: RawRequest | None = None,
        asked: Asked | None = None,
        *,
        target: str | None = None,
        key: str | None = None,
    ) -> None:
        """
        Args:
            request: what is to be answered; None for what only ``target`` is told.
            asked: what a router goes by; None: nothing.
            target: the one replica that it is for; None: whichever the router chooses.
            key: by which a replica knows the call; None makes a new one.
        """
        self.request = request
        self.asked = Asked() if asked is None else asked
        self.target = target
        self.key = uuid.uuid4().hex if key is None else key
        self.note = Note()

    def __reduce__(self) -> tuple[object, ...]:
        return _call, (self.request, self.asked, self.target, self.key)


def _call(request: RawRequest | None, asked: Asked, target: str | None, key: str) -> Call:
    return Call(request, asked, target=target, key=key)
