"""What tenants and keys are made of, as requests say it and as answers show it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from manylora.adapters.mix import normal_name, parse_target
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
from manylora.server.api.http.body import Metadata, RequestBody, bounded

MIN_WEIGHT: Final = 0.01
MAX_WEIGHT: Final = 100.0
MAX_ADAPTER_LIMITS: Final = 256
MAX_LIFETIME: Final = 10 * 366 * 24 * 3600  # seconds that a key may be made for
MAX_OVERLAP: Final = 30 * 24 * 3600  # seconds that a key may last beside the one in its place


def checked_name(name: str) -> str:
    """The name, if a tenant may be called so; else ValueError."""
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


class RateFields(RequestBody):
    """What may be taken in a minute and at a time; what is not given has no limit."""

    max_concurrent_requests: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = Field(None, description="Of prompts and answers together.")
    prompt_tokens_per_minute: Limit | None = None
    completion_tokens_per_minute: Limit | None = None


class LimitFields(RateFields):
    """What a tenant may take in all; what is not given has no limit."""

    monthly_tokens: Limit | None = Field(None, description="Of prompts and answers, in a month of UTC.")
    adapter_bytes: Limit | None = Field(
        None, description="Of its own adapters with the revisions that are kept; held when it publishes."
    )
    file_bytes: Limit | None = Field(None, description="Of its files and of uploads that are open.")


def _checked_default(text: str) -> str:
    parse_target(text)
    return text


AdapterLimits = Annotated[dict[Pattern, RateFields], bounded(MAX_ADAPTER_LIMITS, "adapter_limits")]


class TenantFields(RequestBody):
    """What can be set of a tenant, and changed later; what is not given stays as it is."""

    adapters: Patterns | None = Field(
        None, description="Names of adapters and aliases that it may use; '*' stands for any characters."
    )
    base: bool | None = Field(None, description="Whether it may ask for the base model itself.")
    default_adapter: Annotated[str, AfterValidator(_checked_default)] | None = Field(
        None,
        max_length=limits.MAX_MODEL_LENGTH,
        description="A model string, by its own names, that stands for the base model; '' for none.",
    )
    limits: LimitFields | None = Field(None, description="All of them: those that are not given end.")
    adapter_limits: AdapterLimits | None = Field(
        None,
        description="What it may take with single adapters, by the registry's names or patterns, of which "
        "the first that matches holds. All of them.",
    )
    weight: float | None = Field(
        None, ge=MIN_WEIGHT, le=MAX_WEIGHT, description="Its share of the engine, relative to others'."
    )
    metadata: Metadata | None = Field(None, description="Your own notes.")

    def over(self, settings: TenantSettings) -> TenantSettings:
        """``settings`` with what is given in their place."""
        told: dict[str, Any] = {
            what: value
            for what in ("base", "weight", "metadata")
            if (value := getattr(self, what)) is not None
        }
        if self.adapters is not None:
            told["adapters"] = tuple(dict.fromkeys(self.adapters))
        if self.default_adapter is not None:
            told["default_adapter"] = self.default_adapter or None
        if self.limits is not None:
            told["limits"] = TenantLimits(**self.limits.model_dump())
        if self.adapter_limits is not None:
            told["adapter_limits"] = {
                name: TenantLimits(**each.model_dump()) for name, each in self.adapter_limits.items()
            }
        return replace(settings, **told)


class TenantBody(TenantFields):
    """A new tenant."""

    name: Annotated[str, AfterValidator(checked_name)]
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

    priority: int = Field(
        0,
        ge=-limits.MAX_PRIORITY,
        le=limits.MAX_PRIORITY,
        description="The 'priority' that its requests may have at least; the lower, the earlier.",
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
        **settings_json(tenant.settings),
    }


def settings_json(settings: TenantSettings) -> dict[str, Any]:
    """All that can be set of a tenant."""
    return {
        "adapters": list(settings.adapters),
        "base": settings.base,
        "default_adapter": settings.default_adapter,
        "weight": settings.weight,
        "limits": asdict(settings.limits),
        "adapter_limits": {name: _set(each) for name, each in settings.adapter_limits.items()},
        "metadata": dict(settings.metadata),
    }


def _set(limits: TenantLimits) -> dict[str, int]:
    return {what: value for what, value in asdict(limits).items() if value is not None}


def key_json(key: KeyRecord) -> dict[str, Any]:
    """A key as admins see it; what opens with it is not known any more."""
    return {
        "id": key.id,
        "object": "key",
        "prefix": key.prefix,
        "scopes": list(key.scopes),
        "priority": key.priority,
        "created": int(key.created),
        "expires": None if key.expires is None else int(key.expires),
    }
