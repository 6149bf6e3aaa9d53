"""llm-d's endpoint picker reads the servers' metrics where they are told, and weighs where adapters are."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.support.kube_objects import built, only, variables
from tests.support.kube_schemas import VERSIONS, problems

# Those of its flags that are used here, as llm-d-router v0.10.0 has them (pkg/epp/server/options.go).
FLAGS = {
    "config-file",
    "grpc-health-port",
    "grpc-port",
    "metrics-endpoint-auth",
    "pool-name",
    "pool-namespace",
    "tracing",
    "zap-encoder",
}


@pytest.fixture
def picker() -> Any:
    return only(built("llm-d"), "Deployment", "manylora-epp")["spec"]["template"]["spec"]["containers"][0]


@pytest.fixture
def configuration(picker: Any) -> Any:
    """The file that it is started with."""
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in picker["args"])
    (mount,) = picker["volumeMounts"]
    name = flags["config-file"].removeprefix(f"{mount['mountPath']}/")
    configs = [each for each in built("llm-d") if each["kind"] == "ConfigMap" and name in each["data"]]
    (config,) = configs
    return yaml.safe_load(config["data"][name])


def test_its_file_is_valid(configuration: Any) -> None:
    assert problems(configuration, VERSIONS[-1]) == []


def test_what_a_profile_uses_is_declared(configuration: Any) -> None:
    declared = {plugin["type"] for plugin in configuration["plugins"]}
    for profile in configuration["schedulingProfiles"]:
        assert {plugin["pluginRef"] for plugin in profile["plugins"]} <= declared


def test_where_the_adapter_is_counts_most(configuration: Any) -> None:
    (profile,) = configuration["schedulingProfiles"]
    weights = {plugin["pluginRef"]: plugin["weight"] for plugin in profile["plugins"] if "weight" in plugin}
    assert max(weights, key=weights.__getitem__) == "lora-affinity-scorer"


def test_it_reads_the_metrics_that_need_no_key(configuration: Any) -> None:
    (source,) = (each for each in configuration["plugins"] if each["type"] == "metrics-data-source")
    settings = variables(built("llm-d"))
    assert source["parameters"]["port"] == int(settings["MANYLORA_METRICS_PORT"])
    assert settings["MANYLORA_METRICS_OPEN"] == "true"
    assert source["parameters"]["path"] == "/metrics"


def test_servers_share_their_adapters() -> None:
    """Any of them may be picked, so all must have every adapter."""
    assert "MANYLORA_REGISTRY_SCOPE" not in variables(built("llm-d"))


def test_its_flags_are_known(picker: Any) -> None:
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in picker["args"])
    assert set(flags) == FLAGS
    ports = {each["name"]: each["containerPort"] for each in picker["ports"]}
    assert int(flags["grpc-port"]) == ports["grpc"]
    assert int(flags["grpc-health-port"]) == ports["grpc-health"]
    for kind in ("livenessProbe", "readinessProbe"):
        assert picker[kind]["grpc"]["port"] == ports["grpc-health"]


def test_pool_route_and_picker_belong_together(picker: Any) -> None:
    pool = only(built("llm-d"), "InferencePool")
    reference = pool["spec"]["endpointPickerRef"]
    service = only(built("llm-d"), "Service", reference["name"])
    assert reference["port"]["number"] in {port["port"] for port in service["spec"]["ports"]}
    assert f"--pool-name={pool['metadata']['name']}" in picker["args"]
    (backend,) = only(built("llm-d"), "HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    assert (backend["group"], backend["kind"]) == (pool["apiVersion"].partition("/")[0], pool["kind"])
    assert backend["name"] == pool["metadata"]["name"]
    servers = only(built("llm-d"), "Deployment", "manylora")["spec"]["template"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= servers["metadata"]["labels"].items()
    ports = {port["containerPort"] for port in servers["spec"]["containers"][0]["ports"]}
    assert {port["number"] for port in pool["spec"]["targetPorts"]} <= ports
