"""``manylora serve --ray`` and ``serve run``: both start the application, and say what they can't do."""

from __future__ import annotations

import builtins
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
import yaml

from manylora.server.cli.on_ray import serve_on_ray
from manylora.server.errors import ConfigError
from manylora.server.options.settings import Settings
from tests.support.paths import ROOT

DEPLOYED = yaml.safe_load((ROOT / "deploy" / "ray.yaml").read_text())


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("ray"):
            raise ImportError("No module named 'ray'")
        return there(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'manylora\[ray\]'"):
        serve_on_ray(Settings(ray=True))


def test_the_deployed_options_are_options() -> None:
    (application,) = DEPLOYED["applications"]
    settings = Settings(ray=True, **application["args"])
    assert settings.replicas == 2
    module, _, name = application["import_path"].partition(":")
    source = (ROOT / Path(*module.split(".")[1:])).with_suffix(".py").read_text()
    assert f"def {name}(" in source


@pytest.mark.ray
@pytest.mark.parametrize(
    "options", [{"uds": "/tmp/x"}, {"port": 0}, {"metrics_port": 9}, {"registry_scope": "pod"}]
)
def test_options_that_ray_has_no_place_for_are_refused(options: dict[str, Any]) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: make ray-test")
    with pytest.raises(ConfigError, match="Ray Serve"):
        serve_on_ray(Settings(ray=True, **options))


@pytest.mark.ray
def test_where_nothing_would_speak_tls_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: make ray-test")
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(ConfigError, match="TLS"):
        serve_on_ray(Settings(ray=True, ssl_certfile=Path("cert.pem")))


@pytest.mark.ray
def test_resources_of_a_replica() -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: make ray-test")
    from manylora.server.cluster.ray.application import resources

    def found(cluster: dict[str, float], **options: Any) -> tuple[float, float]:
        return resources(Settings(ray=True, **options), cluster)

    assert found({"CPU": 8.0}, replicas=2) == (4.0, 0.0)
    assert found({"CPU": 8.0}, replicas=2, max_replicas=4) == (2.0, 0.0)
    assert found({"CPU": 8.0, "GPU": 2.0}, replicas=2) == (1.0, 1.0)
    assert found({"CPU": 8.0, "GPU": 2.0}, tensor_parallel_size=2) == (1.0, 2.0)
    assert found({"CPU": 8.0, "GPU": 2.0}, device="cpu") == (8.0, 0.0)
    assert found({"CPU": 1.0}, replicas=4, replica_cpus=0.2, replica_gpus=0.5) == (0.2, 0.5)


@pytest.mark.ray
@pytest.mark.sweep
@pytest.mark.timeout(600)
def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path, model: Path, adapters: Path) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: make ray-test")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--ray", "--replicas", "2", "--replica-cpus", "0.5", "--port", str(port)]
    options += ["--model", str(model), "--served-model-name", "tiny", "--data-dir", str(tmp_path / "data")]
    options += ["--kv-cache-memory", "16MiB", "--adapter-memory", "16MiB", "--training", "off"]
    options += ["--adapter", f"alpha={adapters / 'alpha'}", "--api-key", "secret"]
    command = [sys.executable, "-m", "manylora.server.cli.main", "serve", *options]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        deadline = monotonic() + 240
        while "Ready on" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert monotonic() < deadline
            sleep(0.5)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            assert http.get("/v1/models").status_code == 401
            http.headers["authorization"] = "Bearer secret"
            body = {"model": "alpha", "prompt": "x", "max_tokens": 3}
            assert http.post("/v1/completions", json=body).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(120)
    assert status == 0
