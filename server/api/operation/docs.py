"""``/docs`` and ``/openapi.json``: the interactive page, with its script and style from this machine."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse
from starlette.types import Scope

from manylora.server.api.access.scopes import OPEN, CallerScope, needs
from manylora.server.api.http.json_response import Json

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
@needs(OPEN)
async def document(request: Request, caller: CallerScope) -> Response:
    """The OpenAPI document, with examples that name what the caller may see."""
    return Json(request.app.document(caller, request.scope.get("root_path", "")))


@router.get("/docs")
@needs(OPEN)
async def page(request: Request) -> Response:
    """Swagger's interactive page over ``/openapi.json``."""
    root = _to_root(request.scope)
    return get_swagger_ui_html(
        openapi_url=f"{root}openapi.json",
        title="manylora",
        swagger_js_url=f"{root}docs/swagger-ui-bundle.js",
        swagger_css_url=f"{root}docs/swagger-ui.css",
        swagger_favicon_url=f"{root}docs/favicon.png",
    )


@router.get("/docs/{name}")
@needs(OPEN)
async def asset(name: str) -> Response:
    """A file of the interactive page, from the package that carries them."""
    if name not in _ASSETS:
        raise HTTPException(404)
    path = Path(str(files("fastapi_offline") / "static" / name))
    return FileResponse(path, media_type=_ASSETS[name], headers={"cache-control": "max-age=86400"})


def _to_root(scope: Scope) -> str:
    """What relative links begin with to lead from a route of one step to the root: the slash counts."""
    return "../" if scope.get("raw_path", b"").endswith(b"/") else ""
