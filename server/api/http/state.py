"""The service, as a parameter of routes."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from manylora.server.service import Service


def service_of(request: Request) -> Service:
    """The service of the application that handles ``request``."""
    service: Service = request.app.state.service
    return service


ServiceState = Annotated[Service, Depends(service_of)]
