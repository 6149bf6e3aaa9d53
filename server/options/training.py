"""Fine-tuning jobs: who trains them, and how many at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manylora.adapters.options.option import Option
from manylora.server.options.types import OPERATION, Options


class TrainingOptions(Options):
    """Fine-tuning jobs: who trains them, and how many at once."""

    training: Annotated[
        Literal["auto", "off", "local", "external"],
        Option(OPERATION, "WHO", "Trains jobs: local, external, off, or auto."),
    ] = "auto"
    training_share: Annotated[
        float,
        Option(OPERATION, "X", "Share of the cores, if local."),
        Field(ge=0.01, le=1, allow_inf_nan=False),
    ] = 0.5
    training_jobs: Annotated[
        int,
        Option(OPERATION, "N", "Jobs a worker trains at once."),
        Field(ge=1, le=64),
    ] = 2
    tenant_jobs: Annotated[
        int,
        Option(OPERATION, "N", "One tenant's jobs in training at once."),
        Field(ge=1, le=1000),
    ] = 2
