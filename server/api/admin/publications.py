"""The latest publication under each name that came through this server, for clients that ask later."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Any

from fastapi import Depends, Request

from manylora.adapters.errors import AdapterDeleted, AdapterExists, ArtifactError
from manylora.adapters.registry.records import State
from manylora.server.api.access.scopes import KeyScope
from manylora.server.api.admin.publish_request import UPLOADED, PublishRequest
from manylora.server.api.http.error_answers import error_answer
from manylora.server.api.http.error_context import blame
from manylora.server.names.admin.publishing import Publication

_MAX_KEPT = 4096


class Publications:
    """The latest publication under each name. The oldest are forgotten once they are many."""

    def __init__(self) -> None:
        self._latest: OrderedDict[str, tuple[Publication, PublishRequest]] = OrderedDict()

    def add(self, publication: Publication, wanted: PublishRequest) -> None:
        """Remember ``publication``, which was made for ``wanted``."""
        self._latest[publication.name] = publication, wanted
        self._latest.move_to_end(publication.name)
        oldest, (first, _) = next(iter(self._latest.items()))
        if len(self._latest) > _MAX_KEPT and first.state is not State.LOADING:
            del self._latest[oldest]

    def forget(self, name: str) -> None:
        """Drop the publication under ``name``, which was deleted."""
        self._latest.pop(name, None)

    async def json(self, name: str, caller: KeyScope) -> dict[str, Any] | None:
        """The latest publication under ``name`` as JSON, with the error that a ``caller`` who waits gets."""
        if name not in self._latest:
            return None
        publication, wanted = self._latest[name]
        return {
            "state": publication.state,
            "source": publication.source,
            "received_bytes": wanted.progress.nbytes,
            "total_bytes": wanted.progress.total,
            "error": await _error_of(publication, wanted.param, caller),
        }


async def wait_until_published(publication: Publication, param: str) -> None:
    """Wait until the adapter is published.

    Raises:
        Blamed: it can't be; names ``param``, or the name where that is taken or was deleted.
    """
    with blame(param), blame("name", (AdapterExists, AdapterDeleted)):
        try:
            await publication.done()
        except ArtifactError as error:
            if publication.source.startswith(UPLOADED):  # its faults are of the client's own files
                error.public = str(error)
            raise


async def _error_of(publication: Publication, param: str, caller: KeyScope) -> Any:
    if publication.state is not State.FAILED:
        return None
    try:
        await wait_until_published(publication, param)
    except Exception as error:
        return error_answer(error, caller).body["error"]
    return None


def publications_of(request: Request) -> Publications:
    """The publications of the application that handles ``request``."""
    publications: Publications = request.app.state.publications
    return publications


PublicationsState = Annotated[Publications, Depends(publications_of)]
