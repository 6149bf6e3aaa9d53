"""Loading and unloading as controllers of vLLM's and Dynamo's servers ask: by a path, for all or for one."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final, Literal

from manylora.adapters.errors import AdapterError, AdapterExists, SourceForbidden
from manylora.adapters.mix import check_name
from manylora.adapters.sources.fetching import check, fetch, resolve_directory
from manylora.server.api.http.error_context import blame
from manylora.server.names.status import Deleted, Registered
from manylora.server.service import Service

RegistryScope = Literal["registry", "pod"]

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9._/-]+)?")


def registered_name(service: Service, name: str, scope: RegistryScope | None) -> str:
    """The registry's name for what is to be called ``name``, by all servers or by this one alone.

    Raises:
        AdapterNameError: it is malformed, or too long with what stands before it.
    """
    scope = service.config.registry_scope if scope is None else scope
    check_name(name)
    return name if scope == "registry" else check_name(service.pods.own + name)


async def load(
    service: Service, name: str, path: str, param: str, *, scope: RegistryScope | None, replace: bool
) -> Registered:
    """Read, check and register the adapter at ``path``; if the name has the same already, that is it.

    ``path`` is a directory, a source as in ``PUT /v1/adapters/{name}``, or a repository of the Hub. ``param``
    is what a request calls it.

    Raises:
        Blamed: the name can't be had, or what is there can't be served or read.
    """
    admin = service.adapters.admin
    with blame("lora_name"):
        registered = registered_name(service, name, scope)
        admin.check_free(registered, replace=True)
    with blame(param, AdapterError), blame("lora_name", AdapterExists):
        place = await asyncio.to_thread(_place, path, service)
        if isinstance(place, Path):
            return await admin.load(registered, place, replace=replace)
        return await admin.load_fetched(
            registered, place, lambda into: fetch(place, into, service.sources), replace=replace
        )


async def unload(service: Service, name: str, scope: RegistryScope | None) -> Deleted:
    """Refuse new requests for the adapter at once, let running ones finish, then free its memory.

    Raises:
        Blamed: there is no such adapter, or an alias points to it.
    """
    with blame("lora_name"):
        return await service.adapters.deletions.delete(registered_name(service, name, scope))


def _place(path: str, service: Service) -> Path | str:
    """Where the adapter is: a directory of this machine that may be read, or a URL.

    Raises:
        SourceForbidden, SourceMissing: it may not be read, or is not there.
    """
    roots, repositories = service.config.adapter_root, service.config.adapter_repository
    if _URL.match(path):
        check(path, service.sources)
        return path
    if repositories and _REPOSITORY.fullmatch(path) and not any((root / path).exists() for root in roots):
        source = f"hf://{path}"
        check(source, service.sources)
        return source
    if not roots:
        raise SourceForbidden(
            "Loading adapters over HTTP is off: start the server with --adapter-root DIR to allow it, and "
            "with --adapter-repository or --adapter-url for what is elsewhere"
        )
    return resolve_directory(path, roots)
