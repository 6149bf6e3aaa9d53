"""Replicas come when there is more to do than those that run can answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from tests.server.cluster.on_ray.conftest import tiny_options
from tests.support.ray_application import ray_application

pytestmark = [pytest.mark.ray, pytest.mark.sweep, pytest.mark.timeout(900)]


def test_a_queue_brings_another_replica(tmp_path: Path, model: Path, adapters: Path) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: make ray-test")
    options = {**tiny_options(model, adapters, tmp_path), "replicas": 1, "max_replicas": 2, "max_num_seqs": 4}
    body = {"model": "alpha", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
    with ray_application(tmp_path / "log", **options) as running:
        ended = Event()

        def ask() -> None:
            with running.http() as http:
                while not ended.is_set():
                    assert http.post("/v1/completions", json=body).status_code == 200

        assert len(running.until_replicas(1)) == 1
        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(ask) for _ in range(8)]
            found = running.until_replicas(2)
            ended.set()
            for task in asking:
                task.result(120)
    assert len({replica["pid"] for replica in found}) == 2
