"""``/console``: the page and its files. They hold no secrets: what they show comes from the API."""

from __future__ import annotations

from functools import cache

from fastapi import APIRouter, HTTPException, Request, Response

from manylora.server.api.access.scopes import OPEN, needs
from manylora.server.console.assets import SECURITY_HEADERS, Asset, Console

router = APIRouter(include_in_schema=False)

_FOR_EVER = "public, max-age=31536000, immutable"


@cache
def console_files() -> Console:
    """The files of the installed console, read once a process."""
    return Console()


@router.get("/console")
@needs(OPEN)
async def page(request: Request) -> Response:
    """The console itself."""
    with_slash = request.scope.get("raw_path", b"").endswith(b"/")
    return _answer(request, console_files().page("" if with_slash else "console/"), "no-cache")


@router.get("/console/{version}/{name:path}")
@needs(OPEN)
async def asset(request: Request, version: str, name: str) -> Response:
    """A file of the console, from a table: no path of the file system comes from a request."""
    console = console_files()
    if version != console.version or name not in console.assets:
        raise HTTPException(404)
    return _answer(request, console.assets[name], _FOR_EVER)


def _answer(request: Request, asset: Asset, caching: str) -> Response:
    headers = {"cache-control": caching, "etag": asset.etag, "vary": "accept-encoding", **SECURITY_HEADERS}
    if _knows(request.headers.get("if-none-match", ""), asset.etag):
        return Response(status_code=304, headers=headers)
    if not _takes_gzip(request.headers.get("accept-encoding", "")):
        return Response(asset.plain, media_type=asset.kind, headers=headers)
    return Response(asset.packed, media_type=asset.kind, headers={**headers, "content-encoding": "gzip"})


def _knows(header: str, etag: str) -> bool:
    """Whether one of the tags of an ``If-None-Match`` is this one, in whichever encoding it was sent."""
    return etag.removeprefix("W/") in {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _takes_gzip(header: str) -> bool:
    """Whether an ``Accept-Encoding`` allows gzip, which ``q=0`` does not."""
    for each in header.lower().split(","):
        name, _, weight = each.partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False
