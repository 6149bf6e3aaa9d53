"""What has become of the attempts to publish that came through this server."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Any

from fastapi import Depends, Request

from manylora.adapters.errors import AdapterDeleted, AdapterExists
from manylora.adapters.registry.records import State
from manylora.server.api.admin.upload import Offer
from manylora.server.api.http.error_answers import error_answer
from manylora.server.api.http.error_context import blame
from manylora.server.names.publishing import Publication

_KEPT = 4096


class Publications:
    """The latest publication under each name. The oldest are forgotten once they are many."""

    def __init__(self) -> None:
        self._latest: OrderedDict[str, tuple[Publication, Offer]] = OrderedDict()

    def add(self, publication: Publication, offer: Offer) -> None:
        """Remember ``publication``, which was made of ``offer``."""
        self._latest[publication.name] = publication, offer
        self._latest.move_to_end(publication.name)
        oldest, (first, _) = next(iter(self._latest.items()))
        if len(self._latest) > _KEPT and first.state is not State.LOADING:
            del self._latest[oldest]

    def forget(self, name: str) -> None:
        """The name is gone."""
        self._latest.pop(name, None)

    async def show(self, name: str) -> dict[str, Any] | None:
        """How the latest publication under ``name`` stands; its error is the one a waiting client gets."""
        if name not in self._latest:
            return None
        publication, offer = self._latest[name]
        return {
            "state": publication.state,
            "source": publication.source,
            "received_bytes": offer.received.nbytes,
            "total_bytes": offer.received.total,
            "error": await _error_of(publication, offer.param),
        }


async def outcome(publication: Publication, param: str) -> None:
    """Wait until the adapter is published.

    Raises:
        Blamed: it can't be; names ``param``, or the name where that is taken or was deleted.
    """
    with blame(param), blame("name", (AdapterExists, AdapterDeleted)):
        await publication.done()


async def _error_of(publication: Publication, param: str) -> Any:
    if publication.state is not State.FAILED:
        return None
    try:
        await outcome(publication, param)
    except Exception as error:
        return error_answer(error).body["error"]
    return None


def publications_of(request: Request) -> Publications:
    """The publications of the application that handles ``request``."""
    publications: Publications = request.app.state.publications
    return publications


PublicationsState = Annotated[Publications, Depends(publications_of)]
