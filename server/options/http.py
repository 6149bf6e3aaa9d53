"""What the API listens on, who may use it, and what it keeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manylora.adapters.options.option import Option
from manylora.server.options.types import HTTP, Keys, Options, Origins, Port, Size, SizeOrNone


class HttpOptions(Options):
    """What the API listens on, who may use it, and what it keeps."""

    host: Annotated[
        str,
        Option(HTTP, "HOST", "Address to listen on; 0.0.0.0: all."),
        Field(min_length=1, max_length=255),
    ] = "127.0.0.1"
    port: Annotated[Port, Option(HTTP, "PORT", "0 takes any free port.")] = 8000
    metrics_host: Annotated[
        str | None,
        Option(HTTP, "HOST", "Where /metrics listens by itself.", default="--host's"),
        Field(min_length=1, max_length=255),
    ] = None
    metrics_port: Annotated[
        Port | None, Option(HTTP, "PORT", "/metrics by itself, for routers.", default="none")
    ] = None
    metrics_open: Annotated[bool, Option(HTTP, "", "That port asks for no key.", switch=True)] = False
    api_key: Annotated[Keys, Option(HTTP, "KEY", "Accept only requests with this key.", repeatable=True)] = []
    admin_api_key: Annotated[
        Keys,
        Option(HTTP, "KEY", "Adapters are managed with this key only.", repeatable=True),
    ] = []
    allow_origin: Annotated[
        Origins,
        Option(HTTP, "ORIGIN", "Pages from here may use the API; '*': all.", repeatable=True),
    ] = []
    max_upload_bytes: Annotated[Size, Option(HTTP, "SIZE", "Larger uploads are refused.")] = 2**30
    files_url: Annotated[
        str | None,
        Option(HTTP, "URL", "Clients' files: s3://bucket/a.", default="in --data-dir"),
        Field(min_length=1, max_length=2048),
    ] = None
    response_store: Annotated[SizeOrNone, Option(HTTP, "SIZE", "Responses kept, 30 days; 0: none.")] = (
        256 * 2**20
    )
    unknown_fields: Annotated[
        Literal["refuse", "ignore"],
        Option(HTTP, "WHAT", "Unknown fields: refuse, or ignore."),
    ] = "refuse"
    console: Annotated[
        bool,
        Option(
            HTTP,
            "",
            "Serve the browser console at /console.",
            switch=True,
            without="Serve no console at /console.",
        ),
    ] = True
    max_waiting: Annotated[
        int,
        Option(HTTP, "N", "Requests that may wait; more get 429."),
        Field(ge=1, le=1_000_000),
    ] = 1024
