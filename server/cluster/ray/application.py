"""The application that Ray Serve runs: an ingress, and replicas of the server behind it.

``serve run deploy/ray.yaml`` imports :func:`application`, ``manylora serve --ray`` :func:`build`.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from manylora.server.cluster.affinity import AffinityOptions
from manylora.server.cluster.ray.ingress import Ingress
from manylora.server.cluster.ray.replica import Replica
from manylora.server.options.loading import load_settings
from manylora.server.options.settings import Settings

APPLICATION = "manylora"
REPLICAS = "replicas"
STATS_SECONDS = 0.5  # between two looks at what replicas hold
_HEALTH_SECONDS = 2.0  # between two looks at whether they live
_INGRESS_REQUESTS = 10_000  # that one process of the ingress passes on at once
_REPLICAS_EACH = 8  # for which one process of the ingress passes requests on
_BEYOND = 64  # calls of a replica that are no requests: metrics, prefetches


def application(arguments: dict[str, Any]) -> serve.Application:
    """The application of a Serve config file, whose ``args`` are options of ``manylora serve``.

    Raises:
        ConfigError: an option that there isn't, or a bad value.
    """
    return build(load_settings({**arguments, "ray": True}))


def build(settings: Settings) -> serve.Application:
    """The application for these settings, on the Ray cluster that this process has joined."""
    cpus, gpus = resources(settings, ray.cluster_resources())
    log = LoggingConfig(enable_access_log=False)  # the server has its own
    replicas = serve.deployment(
        Replica,
        name=REPLICAS,
        **_how_many(settings),
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=(settings.max_num_seqs or 256) + settings.max_waiting + _BEYOND,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=_HEALTH_SECONDS,
        logging_config=log,
        request_router_config=RequestRouterConfig(
            request_router_class="manylora.server.cluster.ray.router:AdapterAffinityRouter",
            request_router_kwargs=asdict(AffinityOptions()),
            request_routing_stats_period_s=STATS_SECONDS,
            request_routing_stats_timeout_s=10 * STATS_SECONDS,
        ),
    )
    ingress = serve.deployment(
        serve.ingress(_ingress_of(settings))(),
        name="ingress",
        num_replicas=math.ceil((settings.max_replicas or settings.replicas) / _REPLICAS_EACH),
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        health_check_period_s=_HEALTH_SECONDS,
        logging_config=log,
    )
    return ingress.bind(replicas.bind(settings))


def _ingress_of(settings: Settings) -> Any:
    """What makes the ingress in the process that runs it."""

    def ingress() -> Ingress:
        return Ingress(serve.get_deployment_handle(REPLICAS), settings)

    return ingress


def _how_many(settings: Settings) -> dict[str, Any]:
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    scaling = AutoscalingConfig(
        min_replicas=settings.replicas,
        max_replicas=settings.max_replicas,
        policy=AutoscalingPolicy(policy_function="manylora.server.cluster.ray.autoscaling:autoscale"),
    )
    return {"autoscaling_config": scaling}


def resources(settings: Settings, cluster: dict[str, float]) -> tuple[float, float]:
    """The cores and GPUs of one replica, given what the cluster has."""
    gpus = settings.replica_gpus
    if gpus is None:
        wanted = not settings.device.startswith(("cpu", "mps")) and cluster.get("GPU", 0) >= 1
        gpus = float(settings.tensor_parallel_size) if wanted else 0.0
    cpus = settings.replica_cpus
    if cpus is None:
        most = settings.max_replicas or settings.replicas
        cpus = 1.0 if gpus else max(1.0, cluster.get("CPU", 1.0) // most)
    return cpus, gpus
