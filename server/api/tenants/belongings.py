"""What a tenant has in the registry: the adapters and aliases of its namespace."""

from __future__ import annotations

from contextlib import suppress

from manylora.adapters.errors import AdapterInUse, AdapterNotFound
from manylora.server.names.aliases import aliases_of
from manylora.server.service import Service


def names_in(service: Service, namespace: str) -> list[str]:
    """The adapters and aliases whose names begin so, by name."""
    mirror = service.adapters.mirror
    return sorted(name for name in [*mirror.names, *mirror.aliases] if name.startswith(namespace))


def check_deletable(service: Service, namespace: str) -> None:
    """Raise unless the adapters of a namespace can be deleted.

    Raises:
        AdapterInUse: an alias of somebody else stands for one.
    """
    aliases = service.adapters.mirror.aliases
    for name in names_in(service, namespace):
        for alias in aliases_of(name, aliases, service.model_name):
            if not alias.startswith(namespace):
                raise AdapterInUse(f"the alias {alias!r} points to {name!r}: change or delete it first")


async def delete_names(service: Service, namespace: str) -> None:
    """Delete the adapters and aliases of a namespace, aliases first; requests that run are completed."""
    await service.adapters.admin.catch_up()
    aliases = service.adapters.mirror.aliases
    for name in names_in(service, namespace):
        if name in aliases:
            with suppress(AdapterNotFound):  # another server was faster
                await service.adapters.aliases.delete(name)
    for name in names_in(service, namespace):
        with suppress(AdapterNotFound):
            await service.adapters.deletions.delete(name, 0.0)
