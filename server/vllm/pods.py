"""Names that are one server's alone, in a registry that it shares with others.

Controllers in Kubernetes load an adapter into each pod, and unload it from each. With a registry that several
servers share, the second call would find the work done, and the first unload would take the adapter from all.
So what is loaded for one server alone is kept under a name of its own, ``pods/POD/NAME``: it calls that
``NAME``, and the others don't have it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection

from manylora.adapters.errors import AdapterNotFound
from manylora.adapters.registry.tenants.records import PODS
from manylora.server.names.admin.deletions import Deletions
from manylora.server.names.registry_mirror import RegistryMirror

_ALL = f"{PODS}/"
_OTHER = re.compile(r"[^A-Za-z0-9._-]|^[^A-Za-z0-9]")


class PodView:
    """The names of the registry as one server sees them: its own without what stands before them."""

    answers_base = True

    def __init__(self, own: str, mirror: RegistryMirror) -> None:
        """``own`` is what stands before this server's own names."""
        self._own = own
        self._mirror = mirror

    def meaning(self, name: str) -> str:
        """The registry's name for ``name``: this server's own first."""
        own = self._own + name
        return own if own in self._mirror.names else name

    def shown(self, name: str) -> str:
        """What this server calls the registry's ``name``."""
        return name.removeprefix(self._own)

    def visible(self, name: str | None) -> bool:
        """Whether it is this server's, or no server's alone."""
        return name is None or not name.startswith(_ALL) or name.startswith(self._own)

    def from_sources(self, name: str) -> bool:
        """Whether an unknown name of the registry may be fetched."""
        return not name.startswith(_ALL)


class PodNames:
    """What this server has for itself. Event loop."""

    def __init__(self, pod: str | None, mirror: RegistryMirror, *, usual: bool) -> None:
        """``pod`` tells this server from others of the registry; None: by the name of its host.

        ``usual`` says whether adapters are loaded for one server alone unless a request says otherwise.
        """
        self.own = f"{_ALL}{_OTHER.sub('-', socket.gethostname())[:63] or 'pod' if pod is None else pod}/"
        self._mirror = mirror
        self._usual = usual
        self._names = PodView(self.own, mirror)
        self.view = self._names if usual else None
        """The names as this server has them; None: as the registry has them, for no server has its own."""
        self._known: set[str] = set()  # names that are some server's alone
        mirror.subscribe(self._changed)

    async def forget(self, deletions: Deletions) -> None:
        """Delete what is this server's alone, as it ends; nobody is waited for."""
        for name in sorted(name for name in self._known if name.startswith(self.own)):
            try:
                await deletions.delete(name, 0.0)
            except AdapterNotFound:  # being deleted already
                continue

    def _changed(self, names: Collection[str], _: Collection[str]) -> None:
        for name in names:
            if name.startswith(_ALL):
                (self._known.add if name in self._mirror.names else self._known.discard)(name)
        self.view = self._names if self._usual or self._known else None
