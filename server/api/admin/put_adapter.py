"""``PUT /v1/adapters/{name}``: a new revision, from an upload or from a source the server fetches it from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from manylora.adapters.errors import SourceForbidden, SourceMissing
from manylora.adapters.registry.tags import check_tags
from manylora.adapters.sources.fetching import check, in_subfolder
from manylora.adapters.sources.fetching import fetch as fetch_source
from manylora.adapters.sources.folders import check_subfolder
from manylora.server.api.access.scopes import MANAGE, needs
from manylora.server.api.access.views import CallerView
from manylora.server.api.admin.adapters import details_response
from manylora.server.api.admin.own_names import ManagedName, check_not_base
from manylora.server.api.admin.publications import Publications, PublicationsState, wait_until_published
from manylora.server.api.admin.publish_request import FetchProgress, PublishRequest
from manylora.server.api.admin.raw_archive import receive_archive
from manylora.server.api.admin.upload import receive_upload
from manylora.server.api.files.pages import Parameters
from manylora.server.api.http.body import RequestBody, parse_body
from manylora.server.api.http.disconnect import unless_disconnected
from manylora.server.api.http.error_context import Blamed, blame
from manylora.server.api.http.limits import MAX_PATH_LENGTH
from manylora.server.api.http.middleware import takes_uploads
from manylora.server.api.http.multipart import is_json, is_multipart
from manylora.server.api.http.names_in_paths import NAME
from manylora.server.api.http.openapi import DIRECTORY, PUBLISHED, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import RequestError
from manylora.server.names.admin.publishing import Publication
from manylora.server.names.view import called
from manylora.server.service import Service
from manylora.server.tenants.view import TenantView

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])


class PutParameters(Parameters):
    """What to do about what is there, and when to answer."""

    wait: bool = Field(False, description="Answer when it is done, instead of 202 at once.")
    replace: bool | None = Field(None, description="false: refuse a name that serves already.")


class UploadParameters(PutParameters):
    """Which of several adapters to take, and what :class:`PutParameters` say."""

    subfolder: str = Field(
        "",
        max_length=MAX_PATH_LENGTH,
        description="Of the archive or the source: checkpoint-400. By default the top, or the only one.",
    )


class SourceBody(RequestBody):
    """Where the server is to fetch the adapter from."""

    source: str = Field(
        min_length=1,
        max_length=MAX_PATH_LENGTH,
        pattern=r"^[^\x00]*$",
        description="hf://ORG/REPOSITORY@REVISION, s3://BUCKET/PREFIX, file:///DIRECTORY, or a directory.",
    )
    subfolder: str | None = Field(
        None, max_length=MAX_PATH_LENGTH, description="Of the source, where the adapter is; as in the query."
    )
    tags: list[str] | None = Field(None, description="Replace those the adapter has; by default they stay.")


_FORM = {
    "type": "object",
    "required": ["files"],
    "properties": {
        "files": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "adapter_config.json, adapter_model.safetensors, …, or one archive of them.",
        },
        "subfolder": {"type": "string", "description": "Of the archive; as in the query."},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}
_FROM_DIRECTORY = example("From a directory of the server", {"source": DIRECTORY, "tags": ["tried"]})


@router.put(
    f"/{NAME}",
    summary="Publish an adapter",
    responses=PUBLISHED,
    openapi_extra=documented(SourceBody, {"directory": _FROM_DIRECTORY}, form=_FORM),
)
@needs(MANAGE)
@takes_uploads
async def put_adapter(
    *,
    request: Request,
    service: ServiceState,
    publications: PublicationsState,
    view: CallerView,
    name: ManagedName,
    asked: Annotated[UploadParameters, Query()],
) -> Response:
    """Upload the files of a PEFT adapter (or one tar or zip of them), or name a source to fetch it from.

    An archive may also be the body itself. Of several adapters in it the topmost is taken, or that in
    ``subfolder``.

    It is checked whole before the name moves to it: until then, and if anything is wrong, the name serves
    what it served before. The same content again changes nothing. 202 means that the work goes on: ask for
    the adapter until its ``publication`` is no longer ``loading``. With ``wait`` the answer is 201 for a new
    name, 200 otherwise, or the error with everything that is wrong with the files.
    """
    check_free(request, service, view, name, asked)
    wanted = await _publish_request(request, service, asked.subfolder, sources=view is None)
    return await publish(request, service, publications, view, name, asked=asked, wanted=wanted)


async def publish(
    request: Request,
    service: Service,
    publications: Publications,
    view: TenantView | None,
    name: str,
    *,
    asked: PutParameters,
    wanted: PublishRequest,
) -> Response:
    """Publish an adapter under ``name``, which :func:`check_free` has passed.

    Answers at once, or with ``asked.wait`` when it is done.
    """
    if view is not None:
        wanted = request.app.state.quotas.within(service, view, wanted)
    publication = await _begin(service, name, wanted, _may_replace(request, asked.replace))
    publications.add(publication, wanted)
    if not asked.wait:
        answer = await details_response(service, publications, view, name, 202)
        root = request.scope.get("root_path", "")
        answer.headers["location"] = f"{root}{router.prefix}/{quote(called(name, view), safe='/:')}"
        return answer
    await unless_disconnected(request, wait_until_published(publication, wanted.param))
    return await details_response(service, publications, view, name, 201 if publication.made_name else 200)


async def _publish_request(
    request: Request, service: Service, subfolder: str, *, sources: bool
) -> PublishRequest:
    """What the HTTP request asks to be published, with the files received if it uploads them.

    Without ``sources`` that is all it may do: what the server can read is not the caller's.

    Raises:
        As :func:`receive_upload`; SourceForbidden: the server may not read that source.
    """
    with blame("subfolder", SourceMissing):
        check_subfolder(subfolder)
        kind = request.headers.get("content-type", "")
        if is_multipart(kind):
            return await receive_upload(request, service, subfolder)
    if not is_json(kind):
        received = await receive_archive(request, service, subfolder)
        if isinstance(received, PublishRequest):
            return received
        request = received
    body = await _source(request)
    if not sources:
        raise Blamed(SourceForbidden("a tenant's key uploads the files of its adapters"), "source")
    return await _from_source(body, service, subfolder)


async def _from_source(body: SourceBody, service: Service, subfolder: str) -> PublishRequest:
    """What a body asks to be fetched."""
    if subfolder and body.subfolder and subfolder != body.subfolder:
        raise RequestError("The query and the body name different subfolders", "subfolder")
    with blame("subfolder"):
        source = in_subfolder(body.source, subfolder or body.subfolder or "")
    with blame("source"):
        await asyncio.to_thread(check, source, service.sources)
    progress = FetchProgress()

    def fetch(into: Path) -> str:
        return fetch_source(source, into, service.sources, progress)

    tags = None if body.tags is None else tuple(body.tags)
    return PublishRequest(source, "source", tags, fetch, progress=progress)


async def _source(request: Request) -> SourceBody:
    try:
        return await parse_body(SourceBody)(request)
    except RequestError as error:
        if error.code == "invalid_json":
            hint = (
                "files are uploaded as a form (multipart/form-data), with curl as -F files=@FILE, and an "
                "archive also as the body itself (application/zip, application/x-tar or application/gzip)"
            )
            raise RequestError(f"{error}; {hint}", error.param, error.code) from error
        raise


async def _begin(service: Service, name: str, wanted: PublishRequest, replace: bool) -> Publication:
    try:
        with blame("tags"):
            check_tags(wanted.tags or ())
        with blame("name"):
            publication = await service.adapters.admin.begin_publish(
                name, wanted.fetch, source=wanted.source, replace=replace, tags=wanted.tags
            )
    except BaseException:
        wanted.discard()
        raise
    publication.when_ended(wanted.discard)  # it may have ended before it fetched anything
    return publication


def check_free(
    request: Request, service: Service, view: TenantView | None, name: str, asked: PutParameters
) -> None:
    """Raise unless ``name`` may be published, before anything is received for it.

    Raises:
        Blamed: it is malformed, or taken and not to be replaced.
        RequestError: a precondition that is not supported.
    """
    with blame("name"):
        check_not_base(service, view, name)
        service.adapters.admin.check_free(name, _may_replace(request, asked.replace))


def _may_replace(request: Request, replace: bool | None) -> bool:
    """Whether the name may be in use, as ``replace`` or a precondition says.

    Raises:
        RequestError: another precondition, or one that contradicts ``replace``.
    """
    for header in ("If-Match", "If-None-Match"):
        value = request.headers.get(header)
        if value is not None and (header, value.strip()) != ("If-None-Match", "*"):
            raise RequestError(f"'{header}: {value[:100]}' is not supported", header, "unsupported_parameter")
    if "if-none-match" not in request.headers:
        return replace is not False
    if replace:
        raise RequestError("'If-None-Match: *' contradicts 'replace=true'", "replace")
    return False
