"""The manifests fit the image, the server's options and each other."""

from __future__ import annotations

import re

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from manylora.server.cli.main import app as cli
from manylora.server.options.settings import Settings
from tests.support.kube_objects import EXTENDED, OVERLAYS, SERVERS, built, container, only, pods, variables
from tests.support.paths import ROOT


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_option_named_is_one_the_server_has(overlay: str) -> None:
    named = variables(built(overlay))
    assert named
    assert set(named) <= {f"MANYLORA_{field.upper()}" for field in Settings.model_fields}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_takes_the_values(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(built(overlay)).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    settings = Settings()
    if overlay != "kserve":
        assert settings.metrics_port == 8001
        assert settings.metrics_open


@pytest.mark.parametrize("overlay", SERVERS)
def test_ports_agree(overlay: str) -> None:
    settings = variables(built(overlay))
    ports = {each["name"]: each["containerPort"] for each in container(overlay)["ports"]}
    image = (ROOT / "Dockerfile").read_text()
    assert ports["http"] == int(re.findall(r"MANYLORA_PORT=(\d+)", image)[0])
    assert ports["metrics"] == int(settings["MANYLORA_METRICS_PORT"])
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(overlay)[kind]["httpGet"]["port"] in ports
    for service in (each for each in built(overlay) if each["kind"] == "Service"):
        names = {
            port["name"]
            for _, spec in pods(built(overlay))
            for each in spec["containers"]
            for port in each.get("ports", [])
        }
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for rule in only(built(overlay), "NetworkPolicy")["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= set(ports)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_pods(overlay: str) -> None:
    labels = [labels for labels, _ in pods(built(overlay))]
    for each in built(overlay):
        selector = each["spec"].get("selector", each["spec"].get("podSelector")) if "spec" in each else None
        if selector is None or overlay == "kserve":
            continue
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= have.items() for have in labels), each["metadata"]["name"]


@pytest.mark.parametrize("overlay", SERVERS)
def test_what_is_referred_to_is_there(overlay: str) -> None:
    names = {(each["kind"], each["metadata"]["name"]) for each in built(overlay)}
    for _, spec in pods(built(overlay)):
        for volume in spec["volumes"]:
            assert "configMap" not in volume or ("ConfigMap", volume["configMap"]["name"]) in names
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or ("PersistentVolumeClaim", claim) in names
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        for each in spec["containers"]:
            mounted = {mount["name"] for mount in each["volumeMounts"]}
            assert mounted == {volume["name"] for volume in spec["volumes"]}
            for source in each.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in names


@pytest.mark.parametrize("overlay", SERVERS)
def test_a_read_only_server_can_write_where_it_has_to(overlay: str) -> None:
    image = (ROOT / "Dockerfile").read_text()
    places = {mount["mountPath"] for mount in container(overlay)["volumeMounts"] if not mount.get("readOnly")}
    data = re.findall(r"MANYLORA_DATA_DIR=(\S+)", image)[0]
    caches = re.findall(r"(?:HF_HOME|XDG_CACHE_HOME)=(\S+)", image)
    assert places == {data, "/tmp"}
    assert all(cache.startswith(f"{data}/") for cache in caches)


@pytest.mark.parametrize("overlay", [*SERVERS, "kserve"])
def test_running_answers_get_their_time(overlay: str) -> None:
    spec = next(
        spec for _, spec in pods(built(overlay)) if spec["containers"][0]["image"].startswith("manylora")
    )
    each = spec["containers"][0]
    pause = (
        int(each["lifecycle"]["preStop"]["exec"]["command"][1]) if "lifecycle" in each else 15
    )  # KServe's own
    timeout = float(variables(built(overlay))["MANYLORA_SHUTDOWN_TIMEOUT"])
    assert pause + timeout + 5 <= spec["terminationGracePeriodSeconds"]


def test_probes_ask_what_is_meant() -> None:
    for overlay in OVERLAYS:
        for _, spec in pods(built(overlay)):
            each = spec["containers"][0]
            if each["image"].startswith("manylora") and each["name"] != "worker":
                assert each["livenessProbe"]["httpGet"]["path"] == "/health"
                assert each["readinessProbe"]["httpGet"]["path"] == "/ready"
                assert each["startupProbe"]["httpGet"]["path"] == "/ready"


def test_images_have_versions() -> None:
    images = [
        each["image"]
        for overlay in OVERLAYS
        for _, spec in pods(built(overlay))
        for each in spec["containers"]
    ]
    assert all(re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", image) for image in images), images


def test_a_gpu_is_asked_for() -> None:
    assert container("gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container("gpu")["image"].endswith("-cuda")
    strategy = only(built("gpu"), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}


def test_the_monitor_reads_with_a_key_of_the_same_secret() -> None:
    monitor = only(built(EXTENDED), "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    secrets = {
        entry["valueFrom"]["secretKeyRef"]["name"]
        for entry in container("base")["env"]
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert {endpoint["authorization"]["credentials"]["name"]} == secrets
    assert endpoint["port"] in {each["name"] for each in container("base")["ports"]}


def test_workers_take_their_arguments_and_share_what_the_servers_have() -> None:
    worker = only(built(EXTENDED), "Deployment", "manylora-worker")["spec"]["template"]["spec"]
    (each,) = worker["containers"]
    command = get_command(cli)
    assert isinstance(command, TyperGroup)
    name, *arguments = each["args"]
    values = {"$(MANYLORA_MODEL)": "smollm2-135m", "$(OMP_NUM_THREADS)": "4"}
    context = command.commands[name].make_context(name, [values.get(word, word) for word in arguments])
    assert context.params["model"] == "smollm2-135m"
    assert context.params["threads"] == 4
    assert variables(built(EXTENDED))["MANYLORA_TRAINING"] == "external"
    server = only(built(EXTENDED), "Deployment", "manylora")["spec"]["template"]["spec"]
    assert each["envFrom"] == server["containers"][0]["envFrom"]
    assert worker["volumes"][0] == server["volumes"][0]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_threads_are_those_that_are_asked_for(overlay: str) -> None:
    for _, spec in pods(built(overlay)):
        for each in spec["containers"]:
            if each["image"].startswith("manylora"):
                threads = {entry["name"]: entry for entry in each["env"]}["OMP_NUM_THREADS"]
                assert threads["valueFrom"] == {"resourceFieldRef": {"resource": "requests.cpu"}}
