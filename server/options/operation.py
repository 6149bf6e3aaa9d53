"""Where things are kept, what is logged, and how the server ends."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manylora.adapters.base_models.directory import default_data_dir
from manylora.adapters.options.option import Option
from manylora.adapters.options.values import UserPath
from manylora.server.options.types import OPERATION, AutoSeconds, Days, Options


class OperationOptions(Options):
    """Where things are kept, what is logged, and how the server ends."""

    data_dir: Annotated[
        UserPath, Option(OPERATION, "DIR", "For models and adapters.", default="~/.local/share/manylora")
    ] = Field(default_factory=default_data_dir)
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Option(OPERATION, "LEVEL", "debug, info, warning or error."),
    ] = "info"
    tenants: Annotated[
        UserPath | None,
        Option(OPERATION, "FILE", "Tenants, in YAML; again on SIGHUP.", default="none"),
    ] = None
    usage_days: Annotated[Days, Option(OPERATION, "DAYS", "Usage of tenants is kept.")] = 400
    audit_days: Annotated[Days, Option(OPERATION, "DAYS", "The audit log is kept.")] = 400
    log_format: Annotated[
        Literal["text", "json"], Option(OPERATION, "FORM", "json: one object a line, with request ids.")
    ] = "text"
    otlp_endpoint: Annotated[
        str | None,
        Option(OPERATION, "URL", "Traces go there.", default="OTEL_EXPORTER_OTLP_ENDPOINT"),
        Field(pattern=r"^https?://[^\s/]+(/\S*)?$", max_length=2048),
    ] = None
    access_log: Annotated[bool, Option(OPERATION, "", "One log line a request.", switch=True)] = False
    step_timeout: Annotated[
        AutoSeconds,
        Option(OPERATION, "S", "A longer step ends the server.", default="none; GPU: 300"),
    ] = None
    shutdown_timeout: Annotated[
        float,
        Option(OPERATION, "S", "Time running requests get to finish."),
        Field(ge=0, le=3600, allow_inf_nan=False),
    ] = 10.0
