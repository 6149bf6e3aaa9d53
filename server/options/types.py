"""The types that options share, and the panels they stand in."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from manylora.adapters.mix import normal_name
from manylora.adapters.options.values import (
    UserPath,
    parse_list,
    parse_named_paths,
    parse_size,
    read_auto,
)

ENV_PREFIX = "MANYLORA_"

MODEL, ADAPTERS, HTTP, CONNECTIONS = "Base model", "Adapters", "HTTP", "Connections"
MERGING, ENGINE, OPERATION, CLUSTER = "Merging", "Engine", "Operation", "Many machines"
MAX_BYTES = 2**50  # a petabyte: beyond it the number is a typing error


def refuse_service_link(value: object) -> object:
    """Refuse what Kubernetes sets in pods beside a Service called manylora: ``MANYLORA_PORT=tcp://…``."""
    if isinstance(value, str) and value.startswith("tcp://"):
        raise ValueError(
            "is a Kubernetes service link, not a port number: set enableServiceLinks: false in the pod, "
            "or give the Service another name"
        )
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1, le=MAX_BYTES)]
AutoSize = Annotated[Size | None, BeforeValidator(read_auto)]
SizeOrNone = Annotated[int, BeforeValidator(parse_size), Field(ge=0, le=MAX_BYTES)]
AutoSizeOrNone = Annotated[SizeOrNone | None, BeforeValidator(read_auto)]
AutoLength = Annotated[Annotated[int, Field(ge=1, le=2**24)] | None, BeforeValidator(read_auto)]
Port = Annotated[int, BeforeValidator(refuse_service_link), Field(ge=0, le=65535)]
AutoCount = Annotated[Annotated[int, Field(ge=1, le=1_000_000)] | None, BeforeValidator(read_auto)]
AutoSequences = Annotated[Annotated[int, Field(ge=1, le=4096)] | None, BeforeValidator(read_auto)]
AutoTokens = Annotated[Annotated[int, Field(ge=1, le=2**20)] | None, BeforeValidator(read_auto)]
Seconds = Annotated[float, Field(ge=0.1, le=86400, allow_inf_nan=False)]
AutoReplicas = Annotated[Annotated[int, Field(ge=1, le=4096)] | None, BeforeValidator(read_auto)]
AutoShare = Annotated[
    Annotated[float, Field(ge=0, le=1024, allow_inf_nan=False)] | None, BeforeValidator(read_auto)
]
AutoSeconds = Annotated[Seconds | None, BeforeValidator(read_auto)]
Days = Annotated[int, Field(ge=1, le=36_500)]
NormalName = Annotated[str, AfterValidator(normal_name)]
Keys = Annotated[list[SecretStr], NoDecode, BeforeValidator(parse_list)]
Texts = Annotated[list[str], NoDecode, BeforeValidator(parse_list)]
Roots = Annotated[list[UserPath], NoDecode, BeforeValidator(parse_list)]
Origin = Annotated[str, Field(pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+)$", max_length=255)]
Origins = Annotated[list[Origin], NoDecode, BeforeValidator(parse_list)]
NamedPaths = Annotated[dict[NormalName, UserPath], NoDecode, BeforeValidator(parse_named_paths)]


class Options(BaseSettings):
    """Base of the server's options: immutable, sizes in bytes, times in seconds, unknown keys refused."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )
