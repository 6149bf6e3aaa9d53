"""Where adapters come from, and what memory they have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from manylora.adapters.options.option import Option
from manylora.server.options.types import (
    ADAPTERS,
    AutoSize,
    AutoSizeOrNone,
    NamedPaths,
    Options,
    Roots,
    Texts,
)


class AdapterOptions(Options):
    """Where adapters come from, and what memory they have."""

    adapter: Annotated[
        NamedPaths, Option(ADAPTERS, "NAME=PATH", "Load this adapter at start.", repeatable=True)
    ] = {}
    adapter_root: Annotated[
        Roots,
        Option(ADAPTERS, "DIR", "Load requests read from here, nowhere else.", repeatable=True),
    ] = []
    adapter_repository: Annotated[
        Texts,
        Option(ADAPTERS, "GLOB", "Hub repositories to fetch from, as 'org/*'.", repeatable=True),
    ] = []
    adapter_url: Annotated[
        Texts,
        Option(ADAPTERS, "PREFIX", "URLs to fetch from, as s3://bucket/lora/.", repeatable=True),
    ] = []
    resolve: Annotated[
        Texts,
        Option(ADAPTERS, "SOURCE", "Look unknown names up here: hf://org/{name}.", repeatable=True),
    ] = []
    adapter_memory: Annotated[
        AutoSize, Option(ADAPTERS, "SIZE", "Memory for resident adapters.", default="auto")
    ] = None
    adapter_cache_memory: Annotated[
        AutoSizeOrNone,
        Option(ADAPTERS, "SIZE", "Host memory for others; 0: none.", default="auto"),
    ] = None
    keep_revisions: Annotated[
        int,
        Option(ADAPTERS, "N", "Revisions of a name that are kept."),
        Field(ge=1, le=64),
    ] = 5
    registry_url: Annotated[
        SecretStr | None,
        Option(ADAPTERS, "URL", "SQLite or PostgreSQL of names.", default="in --data-dir"),
    ] = None
    registry_scope: Annotated[
        Literal["registry", "pod"],
        Option(ADAPTERS, "WHOSE", "Whose loads are: all's, or a pod's."),
    ] = "registry"
    pod_name: Annotated[
        str | None,
        Option(ADAPTERS, "NAME", "Tells this server from others.", default="the host's"),
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"),
    ] = None
    max_lora_rank: Annotated[
        int, Option(ADAPTERS, "RANK", "Higher ranks are refused."), Field(ge=1, le=1024)
    ] = 64
