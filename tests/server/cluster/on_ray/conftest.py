"""Two replicas on Ray Serve, and one server beside them to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ray_application import RayApplication, ray_application
from tests.support.running_server import Running, serving
from tests.support.served_adapters import ADAPTERS, service_of


@pytest.fixture(scope="session")
def on_ray(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[RayApplication]:
    """Two replicas of the server with the usual adapters."""
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: make ray-test")
    data = tmp_path_factory.mktemp("on-ray")
    with ray_application(data / "log", **tiny_options(model, adapters, data)) as running:
        running.until_replicas(2)
        yield running


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    """One server of the same model and adapters."""
    with serving(service_of(tmp_path_factory.mktemp("alone"), model, adapters)) as running:
        yield running


def tiny_options(model: Path, adapters: Path, data: Path) -> dict[str, Any]:
    """The options of two replicas, as JSON."""
    return {
        "model": str(model),
        "served_model_name": "tiny",
        "data_dir": str(data),
        "dtype": "fp32",
        "device": "cpu",
        "kv_cache_memory": 8 << 20,
        "adapter_memory": 4 << 20,
        "max_num_seqs": 16,
        "adapter": {name: str(adapters / name) for name in ADAPTERS},
        "adapter_root": [str(adapters)],
        "training": "off",
        "ray": True,
        "replicas": 2,
        "replica_cpus": 0.5,
    }
