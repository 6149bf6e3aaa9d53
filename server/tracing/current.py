"""The trace of the request that is being answered, for those who have something to tell it."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol

from manylora.server.engine.stream import Ended


class RequestTrace(Protocol):
    """What is told of one request while it is answered."""

    def matched(self, method: str, route: str, tenant: str | None) -> None:
        """The route that answers, as it is declared, and the tenant whose key it is."""

    def admitted(self, model: str, adapter: str, since: float) -> None:
        """Its adapters are on the device; it has waited for them since then (``monotonic()``).

        ``model`` is the mix by revisions, ``adapter`` what metrics call it.
        """

    def counting(self, ended: Ended | None) -> Ended:
        """What hears of the end of each of its sequences, and tells ``ended``."""

    def end(self, status: int | None) -> None:
        """The request was answered with that status, or not at all."""


class RequestTracer(Protocol):
    """What begins a trace for each request."""

    def begin(self, headers: Mapping[str, str], request_id: str) -> RequestTrace:
        """The trace of a request that came with these headers."""

    def close(self) -> None:
        """Send what is left. May block for some seconds."""


CURRENT_TRACE: ContextVar[RequestTrace | None] = ContextVar("manylora_trace", default=None)
