"""Ray Serve's autoscaling by :func:`replicas_wanted`. Ray adds its delays to what this decides."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

from manylora.server.cluster.scaling import Load, replicas_wanted


def autoscale(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """How many replicas a deployment should have; Ray's controller calls it by its path."""
    told = context.aggregated_metrics or {}
    loads = [
        Load(
            ongoing,
            told.get("capacity", {}).get(replica, 1.0),
            told.get("adapters_waiting", {}).get(replica, 0.0),
        )
        for replica, ongoing in told.get("ongoing", {}).items()
    ]
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    if not loads:  # replicas have not told anything yet
        return max(least, min(most, context.target_num_replicas)), {}
    return replicas_wanted(loads, least, most), {}
