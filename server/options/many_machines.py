"""Replicas on Ray Serve."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from manylora.adapters.options.option import Option
from manylora.server.options.types import CLUSTER, AutoReplicas, AutoShare, Options


class ManyMachinesOptions(Options):
    """Replicas on Ray Serve."""

    ray: Annotated[bool, Option(CLUSTER, "", "Run replicas on Ray Serve.", switch=True)] = False
    ray_address: Annotated[
        str | None,
        Option(CLUSTER, "ADDRESS", "Of a Ray cluster.", default="starts one here"),
        Field(min_length=1, max_length=255),
    ] = None
    replicas: Annotated[int, Option(CLUSTER, "N", "Servers that share the work."), Field(ge=1, le=4096)] = 1
    max_replicas: Annotated[
        AutoReplicas, Option(CLUSTER, "N", "As many as the load needs.", default="--replicas")
    ] = None
    replica_cpus: Annotated[
        AutoShare, Option(CLUSTER, "X", "Cores of a replica.", default="its part of them; GPU: 1")
    ] = None
    replica_gpus: Annotated[
        AutoShare, Option(CLUSTER, "X", "GPUs of a replica.", default="1, if there are any")
    ] = None
