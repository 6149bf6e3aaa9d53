"""How many requests are open, by the names they asked for and by the revisions they run with.

The two are counted apart. Two names may have one revision: what a deletion waits for are the requests that
asked for its name, and what memory waits for are those that run with the revision, whatever they called it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable


class OpenRequests:
    """Counts every open request once, however many holders it has. Lives on the event loop."""

    def __init__(self, ended: Callable[[], None]) -> None:
        """``ended()`` is called after each request that has ended."""
        self._ended = ended
        self._by_name: Counter[str] = Counter()
        self._by_revision: Counter[str] = Counter()

    def begin(self, names: Iterable[str], digests: Iterable[str]) -> OpenRequest:
        """A request that asked for ``names`` and got the revisions ``digests``; it has no holder yet."""
        return OpenRequest(self, frozenset(names), frozenset(digests))

    def of_name(self, name: str) -> int:
        """Open requests that asked for ``name``, alone or in a mix, in whichever of its revisions."""
        return self._by_name[name]

    def names(self) -> list[str]:
        """The names that open requests asked for."""
        return list(self._by_name)

    def of_revision(self, digest: str) -> int:
        """Open requests that run with the revision ``digest``, or wait to, by whichever name."""
        return self._by_revision[digest]

    def add(self, request: OpenRequest) -> None:
        """Count ``request`` in: it has its first holder."""
        self._by_name.update(request.names)
        self._by_revision.update(request.digests)

    def remove(self, request: OpenRequest) -> None:
        """Count ``request`` out: it has lost its last holder."""
        _take(self._by_name, request.names)
        _take(self._by_revision, request.digests)
        self._ended()

    def check(self, held: Iterable[str]) -> None:
        """Assert that exactly the revisions ``held`` have open requests, and that no count is negative."""
        assert set(self._by_revision) == set(held), "requests do not match the references"
        assert all(count > 0 for count in (*self._by_name.values(), *self._by_revision.values()))


class OpenRequest:
    """One request, which is open as long as somebody holds what it runs with."""

    def __init__(self, requests: OpenRequests, names: frozenset[str], digests: frozenset[str]) -> None:
        self.names = names
        self.digests = digests
        self._requests = requests
        self._holders = 0

    def add_holder(self) -> bool:
        """One more holder; says whether it is the first."""
        self._holders += 1
        if self._holders == 1:
            self._requests.add(self)
        return self._holders == 1

    def remove_holder(self) -> bool:
        """One holder less; says whether it was the last."""
        self._holders -= 1
        if not self._holders:
            self._requests.remove(self)
        return not self._holders


def _take(counts: Counter[str], keys: Iterable[str]) -> None:
    """Count every key down, and keep none that has come to 0."""
    for key in keys:
        counts[key] -= 1
        if not counts[key]:
            del counts[key]
