"""The server on Ray Serve, in processes of its own: what ``manylora serve --ray`` runs, and can be updated.

    python -m tests.support.ray_application OPTIONS-AS-JSON

Lines of the input are JSON objects of options: with each the application is deployed again.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx

from manylora.server.cli.on_ray import ENVIRONMENT

PATIENCE = 240.0  # seconds; Ray and two replicas start in 20 on an idle machine
READY, UPDATED = "ready", "updated"


@dataclass
class RayApplication:
    """A running application."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def http(self, **options: Any) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, timeout=60.0, verify=False, **options)

    def replicas(self) -> list[dict[str, Any]]:
        """What the replicas say of themselves."""
        with self.http() as http:
            answer = http.get("/v1/replicas")
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    def until_replicas(self, count: int) -> list[dict[str, Any]]:
        """Wait until there are so many, all of them ready."""
        deadline = monotonic() + PATIENCE
        while True:
            try:
                found = self.replicas()
            except (httpx.HTTPError, AssertionError):
                found = []
            if len(found) == count and all(replica["ready"] for replica in found):
                return found
            assert monotonic() < deadline, f"{found}"
            sleep(0.2)

    def until_idle(self) -> None:
        """Wait until no replica runs anything."""
        deadline = monotonic() + 60.0
        while running := [r for r in self.replicas() if r["sequences"] or r["kv_cache_used_blocks"]]:
            assert monotonic() < deadline, f"{running}"
            sleep(0.2)

    def update(self, **options: Any) -> None:
        """Deploy it again with other options; returns when that is begun."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(options) + "\n")
        self.process.stdin.flush()

    def until_updated(self) -> None:
        """Wait until the last update is complete."""
        self.until_said(UPDATED)

    def until_said(self, word: str) -> None:
        """Wait for a line of its output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == word:
                return
        raise AssertionError("it has ended")


@contextmanager
def ray_application(log: Path, **options: Any) -> Iterator[RayApplication]:
    """The application from when it is ready; its log, and Ray's of it, are in the file ``log``."""
    port = _free_port()
    command = [sys.executable, "-m", "tests.support.ray_application", json.dumps({**options, "port": port})]
    env = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=env
        ) as process,
    ):
        running = RayApplication(process, port)
        try:
            running.until_said(READY)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


def main(options: dict[str, Any]) -> None:
    """Run the application until the process is told to end."""
    import signal

    import ray
    from ray import serve

    from manylora.server.cluster.ray.application import APPLICATION, build
    from manylora.server.options.settings import Settings

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    # One worker process for each replica and the ingress; Ray counts cores, of which tests have few.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    signal.signal(signal.SIGTERM, end)  # after Ray has set its own
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": options["port"]})
        serve.run(build(Settings(**options)), name=APPLICATION)
        print(READY, flush=True)
        for line in sys.stdin:
            serve.run(build(Settings(**{**options, **json.loads(line)})), name=APPLICATION)
            print(UPDATED, flush=True)
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
