"""``GET /v1/replicas``: what each replica is doing, and what it holds."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from manylora.server.api.access.scopes import ADMIN, needs
from manylora.server.api.http.json_response import Json
from manylora.server.cluster.replica_state import ReplicaState

router = APIRouter(tags=["operation"])


@router.get("/v1/replicas", summary="The replicas that share the work")
@needs(ADMIN)
async def replicas(request: Request) -> Response:
    """The replica that answers; the ingress adds the others."""
    state: ReplicaState = request.app.state.replica
    return Json({"object": "list", "data": [state.shown()]})
