"""What tenants and keys are made of, as requests say it and as answers show it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from manylora.adapters.mix import normal_name
from manylora.adapters.registry.tenants.records import (
    MAX_PATTERNS,
    KeyRecord,
    KeyRight,
    TenantLimits,
    TenantRecord,
    TenantSettings,
    is_pattern,
    is_tenant_name,
)
from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody, bounded

MIN_WEIGHT: Final = 0.01
MAX_WEIGHT: Final = 100.0
MAX_LIFETIME: Final = 10 * 366 * 24 * 3600  # seconds that a key may be made for
MAX_OVERLAP: Final = 30 * 24 * 3600  # seconds that a key may last beside the one in its place


def _checked_name(name: str) -> str:
    if not is_tenant_name(name):
        raise ValueError(
            "a name has 1 to 64 letters, digits, '.', '_' and '-', and begins with one of the first two"
        )
    return name


def _checked_pattern(pattern: str) -> str:
    normal = normal_name(pattern)
    if not is_pattern(normal):
        raise ValueError("no adapter is called so: it is a name, in which '*' may stand for any characters")
    return normal


Pattern = Annotated[
    str, Field(min_length=1, max_length=limits.MAX_USER_LENGTH), AfterValidator(_checked_pattern)
]
Patterns = Annotated[list[Pattern], bounded(MAX_PATTERNS, "adapters")]
Limit = Annotated[int, Field(ge=1, le=2**53)]
Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=limits.MAX_METADATA_KEY)],
        Annotated[str, Field(max_length=limits.MAX_METADATA_VALUE)],
    ],
    bounded(limits.MAX_METADATA, "metadata"),
]


class LimitFields(RequestBody):
    """What a tenant may take on each server; what is not given has no limit."""

    max_concurrent_requests: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = Field(None, description="Of prompts and answers together.")
    prompt_tokens_per_minute: Limit | None = None
    completion_tokens_per_minute: Limit | None = None


class TenantFields(RequestBody):
    """What can be set of a tenant, and changed later; what is not given stays as it is."""

    adapters: Patterns | None = Field(
        None, description="Names of adapters and aliases that it may use; '*' stands for any characters."
    )
    base: bool | None = Field(None, description="Whether it may ask for the base model itself.")
    limits: LimitFields | None = Field(None, description="All of them: those that are not given end.")
    weight: float | None = Field(
        None, ge=MIN_WEIGHT, le=MAX_WEIGHT, description="Its share of the engine, relative to others'."
    )
    metadata: Metadata | None = Field(None, description="Your own notes.")

    def over(self, settings: TenantSettings) -> TenantSettings:
        """``settings`` with what is given in their place."""
        if self.adapters is not None:
            settings = replace(settings, adapters=tuple(dict.fromkeys(self.adapters)))
        if self.base is not None:
            settings = replace(settings, base=self.base)
        if self.weight is not None:
            settings = replace(settings, weight=self.weight)
        if self.limits is not None:
            settings = replace(settings, limits=TenantLimits(**self.limits.model_dump()))
        if self.metadata is not None:
            settings = replace(settings, metadata=self.metadata)
        return settings


class TenantBody(TenantFields):
    """A new tenant."""

    name: Annotated[str, AfterValidator(_checked_name)]
    adopt: bool = Field(
        False, description="Adapters and aliases that are called 'name/…' already are its own from now on."
    )


Right = Literal["infer", "manage", "admin"]


class Expiry(RequestBody):
    """How long a key lasts."""

    expires_in: int | None = Field(None, ge=1, le=MAX_LIFETIME, description="Seconds; without it, for ever.")


class KeyBody(Expiry):
    """A new key."""

    scopes: Annotated[list[Right], Field(min_length=1, max_length=len(KeyRight))] = Field(
        ["infer"],
        description="What it is for: 'infer' asks for answers, 'manage' publishes, changes, shares and "
        "deletes the tenant's own adapters and aliases, 'admin' does everything, as an admin's key does.",
    )


class RotationBody(Expiry):
    """A new key in place of another, for the same."""

    overlap: int = Field(0, ge=0, le=MAX_OVERLAP, description="Seconds that the other lasts beside it.")


def tenant_json(tenant: TenantRecord) -> dict[str, Any]:
    """A tenant as admins see it."""
    return {
        "id": tenant.id,
        "object": "tenant",
        "name": tenant.name,
        "created": int(tenant.created),
        "adapters": list(tenant.settings.adapters),
        "base": tenant.settings.base,
        "weight": tenant.settings.weight,
        "limits": asdict(tenant.settings.limits),
        "metadata": dict(tenant.settings.metadata),
    }


def key_json(key: KeyRecord) -> dict[str, Any]:
    """A key as admins see it; what opens with it is not known any more."""
    return {
        "id": key.id,
        "object": "key",
        "prefix": key.prefix,
        "scopes": list(key.scopes),
        "created": int(key.created),
        "expires": None if key.expires is None else int(key.expires),
    }
