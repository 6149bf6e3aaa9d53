"""``/docs``: the interactive page, with its script and style from this machine instead of a CDN."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, HTTPException, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
PATHS = frozenset({"/docs", *(f"/docs/{name}" for name in _ASSETS)})

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def page() -> Response:
    """Swagger's interactive page over ``/openapi.json``."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="manylora",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon.png",
    )


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    """A file of the interactive page, from the package that carries them."""
    if name not in _ASSETS:
        raise HTTPException(404)
    path = Path(str(files("fastapi_offline") / "static" / name))
    return FileResponse(path, media_type=_ASSETS[name], headers={"cache-control": "max-age=86400"})
