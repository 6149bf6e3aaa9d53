"""Which revisions are held by requests, and a way to wait until they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from time import monotonic

from manylora.server.residency.open_requests import OpenRequests
from manylora.server.residency.revision import Revision


class References:
    """Revisions by digest, with their reference counts. Lives on the event loop."""

    def __init__(self) -> None:
        self.requests = OpenRequests(self.notify)
        self._revisions: dict[str, Revision] = {}
        self._pinned: frozenset[str] = frozenset()
        self._waiting: list[asyncio.Future[None]] = []
        self._closing = False

    def revision(self, digest: str) -> Revision:
        """The one object that stands for a revision."""
        if digest not in self._revisions:
            self._revisions[digest] = Revision(digest, pinned=digest in self._pinned)
        return self._revisions[digest]

    def known(self, digests: Iterable[str]) -> list[Revision]:
        """Those of the revisions that something was done with since the server started."""
        return [self._revisions[digest] for digest in digests if digest in self._revisions]

    def forget(self, digest: str) -> None:
        """Drop the object of a revision that was freed."""
        del self._revisions[digest]

    def knows(self, digest: str) -> bool:
        """Whether anything was done with the revision since the server started."""
        return digest in self._revisions

    def add(self, members: Iterable[Revision]) -> None:
        """Count one more holder of each of ``members``."""
        for revision in members:
            revision.references += 1

    def remove(self, members: Iterable[Revision]) -> None:
        """Count one holder less of each of ``members``."""
        for revision in members:
            revision.references -= 1
            if not revision.references:
                self.notify()

    def count(self, digests: Iterable[str]) -> int:
        """Holders of the revisions together, running or waiting for room."""
        return sum(revision.references for revision in self.known(digests))

    @property
    def total(self) -> int:
        """Holders of all revisions together."""
        return self.count(self._revisions)

    def in_use(self) -> set[str]:
        """Digests of the revisions that somebody holds."""
        return {digest for digest, revision in self._revisions.items() if revision.references}

    def pin(self, digests: Collection[str]) -> list[Revision]:
        """Mark exactly these as pinned from now on; returns them, sorted by digest."""
        self._pinned = frozenset(digests)
        for revision in self._revisions.values():
            revision.pinned = revision.digest in self._pinned
        return [self.revision(digest) for digest in sorted(self._pinned)]

    def notify(self) -> None:
        """Let whoever waits for references to end, or for a name to change, look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait_until(self, condition: Callable[[], bool], deadline: float | None = None) -> bool:
        """Wait until ``condition`` holds, looking whenever something has changed; says whether it does.

        ``deadline`` is on the clock of :func:`time.monotonic`.
        """
        while not condition() and not self._closing:
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                return False
            change = asyncio.get_running_loop().create_future()
            self._waiting.append(change)
            await asyncio.wait({change}, timeout=left)
        return condition()

    def stop_waiting(self) -> None:
        """Let nobody wait any more; the server is closing."""
        self._closing = True
        self.notify()

    def check(self) -> None:
        """Assert that no count is negative, that only holders are admitted, and that requests hold all."""
        assert all(0 <= r.admitted <= r.references for r in self._revisions.values())
        self.requests.check(self.in_use())
