"""What routes find of the application and of their request: the service, and the fields that did nothing."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends, Request

from manylora.server.service import Service

IGNORED_FIELDS: Final = "manylora.ignored_fields"  # where a request's scope has them


def service_of(request: Request) -> Service:
    """The service of the application that handles ``request``."""
    service: Service = request.app.state.service
    return service


ServiceState = Annotated[Service, Depends(service_of)]


def ignored_fields(request: Request) -> list[str]:
    """The list that takes the paths of fields of ``request`` that do nothing; the answer's header has it."""
    names: list[str] = request.scope.setdefault(IGNORED_FIELDS, [])
    return names
