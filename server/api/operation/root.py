"""``GET /``: what this server is, for whoever finds it: a page for browsers, JSON for everything else."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from manylora.server.api.access.scopes import OPEN, needs
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.state import ServiceState

router = APIRouter(tags=["operation"])

# Paths are relative, so that they also lead to the server through a proxy that serves it under a prefix.
_ABOUT = "One base model, many LoRA adapters, and weighted mixes of them, behind the OpenAI API."
_CONSOLE = '<li><a href="console">The console: try, compare and manage models in a browser</a></li>\n'
_LINKS = {"api": "v1", "docs": "docs", "openapi": "openapi.json", "health": "health", "ready": "ready"}
_PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>manylora</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 40em; margin: 4em auto; padding: 0 1em }}</style>
<h1>manylora</h1>
<p>{_ABOUT}</p>
<ul>
{{console}}<li><a href="docs">Every route, to be tried here</a></li>
<li><a href="openapi.json">The same as an OpenAPI document</a></li>
<li><a href="v1/models">What can be asked for</a> (may need an API key)</li>
<li><a href="ready">Whether it is ready</a></li>
</ul>
<p>Programs that speak to OpenAI's API take this address and <code>/v1</code> as their base URL.</p>
</html>
"""


@router.get("/", summary="What is this?")
@needs(OPEN)
async def about(request: Request, service: ServiceState) -> Response:
    """The server's name and where its routes are described; a page where the client prefers HTML."""
    headers = {"vary": "accept"}
    if "text/html" in request.headers.get("accept", "").lower():
        page = _PAGE.replace("{console}", _CONSOLE if service.config.console else "")
        return HTMLResponse(page, headers=headers)
    links = _LINKS | ({"console": "console"} if service.config.console else {})
    return Json({"name": "manylora", "description": _ABOUT, **links}, headers=headers)
