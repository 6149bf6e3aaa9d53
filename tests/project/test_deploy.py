"""The deployment files fit the code: no engine builds them here, so everything that can be checked is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from manylora.server.assembly import keep_compiled
from manylora.server.metrics.metrics import Metrics
from manylora.server.options.settings import Settings
from tests.support.paths import ROOT
from tests.support.wheel import SOURCES

DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "manylora.json"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), continuation lines joined, comments gone."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.split("\n") if line)
    ]


def final_stage() -> list[tuple[str, str]]:
    everything = instructions()
    last = max(i for i, (word, _) in enumerate(everything) if word == "FROM")
    return everything[last:]


def last(word: str) -> str:
    return [rest for instruction, rest in final_stage() if instruction == word][-1]


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def option_names() -> set[str]:
    return {f"MANYLORA_{field.upper()}" for field in Settings.model_fields}


def test_stages_start_from_a_pinned_slim_image() -> None:
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert len(bases) == 2
    assert all(base.endswith("-slim-bookworm") for base in bases)


def test_the_container_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d*", last("USER")), "a number, so that an orchestrator can check it"
    words = [word for word, _ in final_stage()]
    after = words[len(words) - words[::-1].index("USER") :]
    assert not {"RUN", "COPY", "USER"} & set(after), "nothing is installed after dropping root"


def test_commands_are_in_exec_form() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["manylora"]
    assert json.loads(last("CMD")) == ["serve"]


def test_apt_leaves_no_lists_and_pip_no_cache() -> None:
    runs = " ".join(rest for word, rest in instructions() if word == "RUN")
    assert "--no-install-recommends" in runs
    assert "rm -rf /var/lib/apt/lists/*" in runs
    assert any(word == "ENV" and "PIP_NO_CACHE_DIR=1" in rest for word, rest in instructions())


def copied() -> list[str]:
    sources = (rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest)
    return [source for group in sources for source in group if not source.startswith("--")]


@pytest.mark.parametrize("source", copied())
def test_copied_files_exist_and_are_in_the_build_context(source: str) -> None:
    assert (ROOT / source).exists()
    assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_image_gets_what_the_wheel_is_built_from() -> None:
    """The wheel's own test builds it from these files alone."""
    assert set(SOURCES) <= set(copied())


def test_torch_is_split_from_the_lock_file(tmp_path: Path) -> None:
    run = next(rest for word, rest in instructions() if word == "RUN" and "rest.lock" in rest)
    split = run.partition("&& pip install")[0]
    (tmp_path / "requirements.lock").write_bytes((ROOT / "requirements.lock").read_bytes())
    script = f"{split} && echo ${{torch}}"
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)
    pins = (tmp_path / "rest.lock").read_text().splitlines()
    names = {line.partition("==")[0] for line in pins if "==" in line}
    assert {"fastapi", "transformers", "prometheus-client"} <= {
        name.lower().replace("_", "-") for name in names
    }
    assert "torch" not in names


class _Ready(BaseHTTPRequestHandler):
    """Answers /ready with the status the test sets on the server."""

    def do_GET(self) -> None:
        ready = self.path == "/ready" and getattr(self.server, "ready", False)
        self.send_response(200 if ready else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Silent."""


@pytest.fixture
def probe_target() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Ready) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("ready", [True, False])
def test_the_health_check_tells_ready_from_not(probe_target: HTTPServer, ready: bool) -> None:
    probe_target.ready = ready  # type: ignore[attr-defined]
    command = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:]],
        env={"MANYLORA_PORT": str(probe_target.server_port)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode == 0) is ready


def test_every_option_named_is_one_the_server_has() -> None:
    image = {
        word for kind, rest in final_stage() if kind == "ENV" for word in re.findall(r"(MANYLORA_\w+)=", rest)
    }
    services = (load(name)["services"]["manylora"] for name in ("compose.yaml", "compose.cuda.yaml"))
    compose = {key for service in services for key in service["environment"] if key.startswith("MANYLORA_")}
    documented = set(re.findall(r"MANYLORA_\w+", (ROOT / "docs" / "deployment.md").read_text()))
    assert image
    assert compose
    assert image | compose | documented <= option_names()


def test_compose_mounts_files_that_exist_and_named_volumes() -> None:
    compose = load("compose.yaml")
    for service in compose["services"].values():
        for mount in service["volumes"]:
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", mount).split(":")[0]
            known = (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
            assert known, mount


def test_compose_pins_versions_and_opens_nothing_to_the_network() -> None:
    services = load("compose.yaml")["services"]
    assert set(services) == {"manylora", "prometheus", "grafana"}
    for name, service in services.items():
        assert not service["image"].endswith(":latest")
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert "healthcheck" in service or name == "manylora"  # the image brings its own
    assert services["manylora"]["cap_drop"] == ["ALL"]


def test_prometheus_scrapes_the_server() -> None:
    (job,) = load("prometheus.yml")["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"] == [{"targets": ["manylora:8000"]}]


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def test_grafana_finds_its_datasource_and_dashboards() -> None:
    (source,) = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    uids = {panel["datasource"]["uid"] for panel in dashboard()["panels"] if panel["type"] != "row"}
    assert uids == {source["uid"]}
    (provider,) = load("grafana/provisioning/dashboards/manylora.yaml")["providers"]
    mounts = load("compose.yaml")["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_the_dashboard_shows_every_metric_and_only_ours() -> None:
    metrics = Metrics()
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    used = set(re.findall(r"manylora_\w+", " ".join(queries)))
    assert used <= metrics.names()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics.names()}
    assert families <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}


def test_dashboard_panels_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_compiled_kernels_are_kept_where_a_read_only_container_may_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton's own place is the home folder: it could not compile there, and slower kernels would run."""
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    (data_dir,) = (
        word.partition("=")[2] for word in last("ENV").split() if word.startswith("MANYLORA_DATA_DIR=")
    )
    keep_compiled(Path(data_dir))
    kept = Path(os.environ["TRITON_CACHE_DIR"])
    service = load("compose.yaml")["services"]["manylora"]
    assert service["read_only"] is True
    writable = [volume.split(":")[1] for volume in service["volumes"] if not volume.endswith(":ro")]
    assert any(kept.is_relative_to(place) for place in writable)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    keep_compiled(Path(data_dir))
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere", "what the environment says goes first"
