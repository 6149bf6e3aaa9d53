"""``manylora serve --ray``: many replicas instead of one server."""

from __future__ import annotations

import os

from manylora.server.errors import ConfigError
from manylora.server.options.settings import Settings

# Read when Ray is imported. With two loops fewer to hop between, a first token comes milliseconds earlier.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}


def serve_on_ray(settings: Settings) -> None:
    """Serve on Ray Serve until SIGINT or SIGTERM.

    Raises:
        ConfigError: Ray is not installed, or an option can't be had on it.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray.serve  # noqa: F401, PLC0415  (takes seconds)
    except ImportError as error:
        raise ConfigError(f"--ray needs Ray Serve: pip install 'manylora[ray]' ({error})") from error
    from manylora.server.cluster.ray.starting import run_on_ray  # noqa: PLC0415

    run_on_ray(settings)
