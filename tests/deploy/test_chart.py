"""The chart of ``deploy/helm``, as helm renders it."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import yaml

from manylora.server.options.settings import Settings
from tests.support.chart_section import ELSEWHERE, SCHEMA, options
from tests.support.crd_check import EVERYTHING_ON
from tests.support.kube_objects import CHART, EXTENDED, ChartRefused, built, chart, only, pods, variables
from tests.support.kube_schemas import VERSIONS, problems
from tests.support.kube_tools import run

ONE_SERVER = {
    "replicaCount": 1,
    "secret.keys": {"registryUrl": "", "apiKey": "", "adminApiKey": ""},
    "secret.optionalKeys": {
        "filesUrl": "",
        "awsAccessKeyId": "",
        "awsSecretAccessKey": "",
        "awsEndpointUrl": "",
        "hfToken": "",
    },
    "persistence.accessMode": "ReadWriteOnce",
    "networkPolicy.enabled": False,
    "podDisruptionBudget.enabled": False,
}
ALL_SET = {
    **EVERYTHING_ON,
    "gpus": 2,
    "image": {
        "repository": "registry.example:5000/a/b",
        "tag": "1.2.3-cuda",
        "pullPolicy": "Always",
        "pullSecrets": ["x"],
    },
    "settings": {
        "max_num_seqs": 64,
        "access_log": True,
        "max_connections": 1000000,
        "auto_merge_share": 0.95,
    },
    "service": {"type": "LoadBalancer", "port": 80, "annotations": {"a.example/b": "c"}},
    "persistence": {"existingClaim": "models", "storageClass": "fast"},
    "networkPolicy.requestsFrom": ["web"],
    "serviceAccount.annotations": {"iam.example/role": "r"},
    "podLabels": {"model": "a"},
    "podAnnotations": {"b": "c"},
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "shutdownTimeout": 100.5,
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "values", [{}, EVERYTHING_ON, ONE_SERVER, ALL_SET], ids=["usual", "all kinds", "least", "most"]
)
def test_every_object_is_valid(values: dict[str, Any], version: str) -> None:
    assert [problem for each in chart(values) for problem in problems(each, version)] == []


def test_the_linter_finds_nothing() -> None:
    done = run("helm", "lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


def test_settings_are_the_servers_options() -> None:
    """If this fails: python -m tests.support.chart_section."""
    assert set(Settings.model_fields) >= ELSEWHERE
    schema = json.loads(SCHEMA.read_text())
    assert schema["properties"]["settings"]["propertyNames"]["enum"] == options()


def test_values_are_all_in_the_schema() -> None:
    """A value that the schema has and the file has not would be one that nobody finds."""

    def compared(schema: Any, values: Any, path: str) -> None:
        if schema.get("additionalProperties") is False:
            assert set(schema["properties"]) - {"global"} == set(values), path
            for name, inner in values.items():
                compared(schema["properties"][name], inner, f"{path}.{name}")

    compared(json.loads(SCHEMA.read_text()), yaml.safe_load((CHART / "values.yaml").read_text()), "values")


def simplified(value: Any) -> Any:
    """Without what a release adds: its name in labels, hashes, and the order of variables."""
    if isinstance(value, dict):
        dropped = {"app.kubernetes.io/instance", "annotations"}
        return {
            key: sorted(map(simplified, each), key=json.dumps) if key == "env" else simplified(each)
            for key, each in value.items()
            if key not in dropped
        }
    return [simplified(each) for each in value] if isinstance(value, list) else value


def test_it_makes_the_same_pods_as_the_plain_manifests() -> None:
    ours, theirs = (copy.deepcopy(only(each, "Deployment")) for each in (chart(), built("base")))
    for each in (ours, theirs):
        each["spec"]["template"]["spec"]["containers"][0].pop("envFrom", None)
    assert simplified(ours["spec"]) == simplified(theirs["spec"])


def test_its_workers_are_the_plain_ones() -> None:
    objects = (chart({"training.mode": "external"}), built(EXTENDED))
    names = {each["metadata"]["name"] for each in objects[1] if each["kind"] == "Deployment"}
    (name,) = names - {"manylora"}
    ours, theirs = (copy.deepcopy(only(each, "Deployment", name)) for each in objects)
    for each in (ours, theirs):
        container = each["spec"]["template"]["spec"]["containers"][0]
        container.pop("envFrom")
        container["env"] = [entry for entry in container["env"] if entry["name"] != "HF_TOKEN"]
    assert simplified(ours["spec"]) == simplified(theirs["spec"])


def test_it_sets_the_same_options_as_the_plain_manifests() -> None:
    assert variables(chart()) == variables(built("base"))


def test_its_monitor_is_the_plain_one() -> None:
    plain = copy.deepcopy(only(built(EXTENDED), "PodMonitor"))
    plain["spec"]["podMetricsEndpoints"][0].pop("scrapeTimeout")
    assert simplified(only(chart(EVERYTHING_ON), "PodMonitor")["spec"]) == simplified(plain["spec"])


def test_its_pool_is_the_plain_one() -> None:
    ours, plain = (only(objects, "InferencePool") for objects in (chart(EVERYTHING_ON), built("llm-d")))
    assert simplified(ours["spec"]) == simplified(plain["spec"])


def test_options_are_rendered_as_the_server_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(chart(ALL_SET)).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.max_num_seqs == 64
    assert settings.access_log is True
    assert settings.max_connections == 1_000_000
    assert settings.auto_merge_share == 0.95
    assert settings.shutdown_timeout == 100.5


def test_a_changed_option_is_rolled_out() -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = only(chart(values), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/settings"])

    assert checksum({}) == checksum({"replicaCount": 3})
    assert checksum({}) != checksum({"settings.max_num_seqs": 3})


def test_time_to_end_grows_with_the_timeout() -> None:
    spec = pods([only(chart(ALL_SET), "Deployment", "manylora")])[0][1]
    assert spec["terminationGracePeriodSeconds"] == 116


def test_gpus_are_asked_for_and_tolerated() -> None:
    ((_, spec),) = pods(chart({"gpus": 2}))
    assert spec["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "2", "memory": "4Gi"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert only(chart({"gpus": 2}), "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


def test_several_gpus_share_the_base() -> None:
    name = "MANYLORA_TENSOR_PARALLEL_SIZE"
    assert name not in variables(chart({"gpus": 1}))
    assert variables(chart({"gpus": 2}))[name] == "2"
    assert variables(chart({"gpus": 4, "settings": {"tensor_parallel_size": 2}}))[name] == "2"
    ((_, spec),) = pods(chart({"gpus": 2}))
    assert {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]} >= {"/dev/shm", "/data"}


def test_labels_of_the_user_do_not_hide_the_selectors() -> None:
    values = {"podLabels": {"app.kubernetes.io/name": "other", "model": "a"}}
    ((labels, _),) = pods(chart(values))
    selector = only(chart(values), "Deployment")["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    assert labels["model"] == "a"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"secret.keys.registryUrl": ""}, "several servers need one registry"),
        ({"persistence.accessMode": "ReadWriteOnce"}, "several servers need one data volume"),
        ({"secret.keys.apiKey": ""}, "without apiKey requests need no key"),
        ({**EVERYTHING_ON, "metrics.podMonitor.key": ""}, "/metrics needs a key"),
        (
            {"training.mode": "external", "replicaCount": 1, "secret.keys.registryUrl": ""},
            "need one registry",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ChartRefused, match=reason):
        chart(values)


@pytest.mark.parametrize(
    "values",
    [
        {"replicaCount": "two"},
        {"replicas": 2},
        {"settings": {"max_num_seq": 1}},
        {"settings": {"api_key": "s3cret"}},
        {"settings": {"registry_url": "postgresql://u:p@h/d"}},
        {"settings": {"max_num_seqs": [1]}},
        {"settings": {"training": "off"}},
        {"training.mode": False},
        {"metrics.port": 8000},
        {"metrics.port": 80},
        {"image.tag": "a b"},
        {"persistence.size": "much"},
        {"persistence.accessMode": "ReadOnlyMany"},
        {"service.type": "ClusterIP\n  externalIPs: [10.0.0.1]"},
        {"fullnameOverride": "a\nb"},
        {"fullnameOverride": "A"},
        {"secret.name": "a/b"},
        {"secret.keys.apiKey": 'k"\noptional: true'},
        {"networkPolicy.metricsFrom": ['a"]']},
        {"inferencePool.endpointPicker.failureMode": "FailOften"},
        {"metrics.podMonitor.interval": "15s\n      port: 1"},
        {"podLabels": {"a": 1}},
    ],
    ids=str,
)
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ChartRefused, match="schema"):
        chart(values)


HOSTILE = "a\"b'c\n  privileged: true\n---\nkind: Pod # {{ .Release.Name }} &x *x !!y %z \\n \t\u00e9\u2028"


def test_no_value_breaks_out_of_its_place() -> None:
    """Wherever any text is taken, it comes out as that text, and nothing else changes."""
    places = {
        "model": HOSTILE,
        "settings": {"served_model_name": HOSTILE},
        "service.annotations": {HOSTILE: HOSTILE},
        "serviceAccount.annotations": {HOSTILE: HOSTILE},
        "podLabels": {HOSTILE: HOSTILE},
        "podAnnotations": {HOSTILE: HOSTILE},
        "nodeSelector": {HOSTILE: HOSTILE},
        "resources.requests": {HOSTILE: HOSTILE},
        "tolerations": [{"key": HOSTILE}],
        "metrics.podMonitor": {"enabled": True, "labels": {HOSTILE: HOSTILE}},
    }
    objects = chart(places)
    plain = chart({"metrics.podMonitor.enabled": True})
    assert [each["kind"] for each in objects] == [each["kind"] for each in plain]
    settings = variables(objects)
    assert settings["MANYLORA_MODEL"] == settings["MANYLORA_SERVED_MODEL_NAME"] == HOSTILE
    ((labels, spec),) = pods(objects)
    template = only(objects, "Deployment")["spec"]["template"]
    for mapping in (
        labels,
        template["metadata"]["annotations"],
        spec["nodeSelector"],
        spec["containers"][0]["resources"]["requests"],
        only(objects, "Service")["metadata"]["annotations"],
        only(objects, "ServiceAccount")["metadata"]["annotations"],
        only(objects, "PodMonitor")["metadata"]["labels"],
    ):
        assert mapping[HOSTILE] == HOSTILE
    assert spec["tolerations"] == [{"key": HOSTILE}]
    assert spec["containers"][0]["securityContext"]["privileged"] is False


@pytest.mark.parametrize("release", ["manylora", "a" * 53, "123", "null", "true", "1e3", "a.b", "0x1f"])
def test_a_release_may_have_any_name_that_helm_takes(release: str) -> None:
    objects = chart(release=release)
    assert [problem for each in objects for problem in problems(each, VERSIONS[-1])] == []
    ((labels, _),) = pods(objects)
    assert labels["app.kubernetes.io/instance"] == release
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", each["metadata"]["name"]) for each in objects)


def test_every_name_in_the_chart_is_quoted() -> None:
    """Programs differ in what they take for a number: 1e3 is one to some of them."""
    for file in (CHART / "templates").glob("*.yaml"):
        for line in re.findall(r".*include \"manylora\.(?:fullname|claim)\".*", file.read_text()):
            assert line.rstrip().endswith("| quote }}"), line
