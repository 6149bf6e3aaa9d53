"""Tenants as a file has them: what would change, and the change; over HTTP, at start and on SIGHUP."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, ValidationError

from manylora.adapters.errors import AdapterError
from manylora.adapters.options.loading import OptionsRefused, read_yaml
from manylora.adapters.registry.tenants.records import TenantRecord, TenantSettings
from manylora.adapters.registry.tenants.tenants import MAX_TENANTS, Tenants
from manylora.server.api.access.scopes import ADMIN
from manylora.server.api.http.body import RequestBody
from manylora.server.api.http.error_answers import error_answer
from manylora.server.api.tenants.belongings import names_in
from manylora.server.api.tenants.bodies import TenantFields, checked_name, settings_json
from manylora.server.errors import ConfigError, ObjectInUse, ServerError
from manylora.server.service import Service

logger = logging.getLogger(__name__)

CREATE, CHANGE, DELETE = "create", "change", "delete"
DEFAULTS: Final = TenantSettings()


class TenantsBody(RequestBody):
    """All that is to be true of tenants. What is not given of one is as it is for a new one."""

    tenants: Annotated[
        dict[Annotated[str, AfterValidator(checked_name)], TenantFields], Field(max_length=MAX_TENANTS)
    ]
    delete_others: bool = Field(
        False, description="Delete tenants that are not among them, unless they have adapters."
    )
    adopt: bool = Field(
        False, description="What is called like a new one's own already is its own from now on."
    )


@dataclass(frozen=True, slots=True)
class Change:
    """What is different of one tenant: of each setting what it is and what it will be."""

    action: str
    tenant: str
    settings: Mapping[str, tuple[Any, Any]]

    @property
    def json(self) -> dict[str, Any]:
        """The change as it is told."""
        told = {what: {"before": before, "after": after} for what, (before, after) in self.settings.items()}
        return {"object": "tenant.change", "action": self.action, "tenant": self.tenant, "settings": told}


def plan(known: Sequence[TenantRecord], body: TenantsBody) -> list[Change]:
    """What has to change, by name."""
    before = {tenant.name: settings_json(tenant.settings) for tenant in known}
    plain = settings_json(DEFAULTS)
    changes: list[Change] = []
    for name, fields in sorted(body.tenants.items()):
        after = settings_json(fields.over(DEFAULTS))
        now = before.get(name, plain)
        different = {what: (now[what], after[what]) for what in after if now[what] != after[what]}
        if name not in before or different:
            changes.append(Change(CHANGE if name in before else CREATE, name, different))
    if body.delete_others:
        gone = sorted(before.keys() - body.tenants.keys())
        changes += [Change(DELETE, name, {}) for name in gone]
    return changes


async def carry_out(service: Service, body: TenantsBody, changes: Sequence[Change]) -> None:
    """Make the changes, one after the other.

    Raises:
        ObjectInUse: one would give or take a tenant adapters without a word; then none is made.
        StoreError: the registry can't be written.
    """
    await service.adapters.admin.catch_up()
    for change in changes:
        kept = change.action == CHANGE or (change.action == CREATE and body.adopt)
        found = [] if kept else names_in(service, f"{change.tenant}/")
        if found:
            raise ObjectInUse(
                f"There are {len(found)} adapters and aliases called '{change.tenant}/…', such as "
                f"'{found[0]}': say 'adopt' to give them to a new tenant, delete them with one that goes"
            )
    for change in changes:
        await service.tenants.change(partial(_make, body, change))


def _make(body: TenantsBody, change: Change, registry: Tenants) -> None:
    if change.action == DELETE:
        registry.remove(change.tenant)
        return
    wanted = body.tenants[change.tenant].over(DEFAULTS)
    if change.action == CREATE:
        registry.add(change.tenant, wanted)
    else:
        registry.change(change.tenant, lambda _: wanted)


def read_file(path: Path) -> TenantsBody:
    """What a file says of tenants.

    Raises:
        ConfigError: it can't be read, or says what can't be; names every fault.
    """
    try:
        return TenantsBody.model_validate(read_yaml(path))
    except OptionsRefused as error:
        raise ConfigError(f"--tenants {error}") from None
    except ValidationError as error:
        raise ConfigError(f"--tenants {path}: {error_answer(error, ADMIN).message}") from None
    except (AdapterError, ServerError) as error:  # what is no model string, or far too much
        raise ConfigError(f"--tenants {path}: {error}") from None


async def apply_file(service: Service, path: Path) -> list[Change]:
    """Make tenants what a file says; what has changed.

    Raises:
        ConfigError: the file is at fault, or the tenants can't be so.
    """
    if not (service.config.api_key or service.config.admin_api_key):
        raise ConfigError("--tenants needs --admin-api-key: with tenants, nobody is let in without a key")
    body = read_file(path)
    changes = plan(service.tenants.all(), body)
    try:
        await carry_out(service, body, changes)
    except (AdapterError, ServerError) as error:
        raise ConfigError(f"--tenants {path}: {error}") from error
    for change in changes:
        logger.info(
            "tenant %s: %s as %s says %s", change.tenant, change.action, path, sorted(change.settings)
        )
    return changes


async def apply_again(service: Service, path: Path) -> None:
    """The same for a server that runs: what is at fault is logged, and nothing changes."""
    try:
        changes = await apply_file(service, path)
    except ConfigError as error:
        logger.error("%s; tenants stay as they are", error)
    else:
        logger.info("%s is applied: %d tenants changed", path, len(changes))
