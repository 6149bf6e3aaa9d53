"""What the manifests allow: no more than is needed, to nobody else."""

from __future__ import annotations

import re

import pytest

from tests.support.kube_objects import OVERLAYS, SERVERS, Manifest, built, container, only, pods
from tests.support.paths import ROOT


def everything() -> list[Manifest]:
    return [each for overlay in OVERLAYS for each in built(overlay)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_may_more_than_it_has_to(overlay: str) -> None:
    found = pods(built(overlay))
    assert found
    for _, spec in found:
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for each in spec["containers"]:
            own = each["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["privileged"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert {"memory"} <= set(each.get("resources", {"limits": {"memory"}})["limits"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_servers_run_as_the_images_user(overlay: str) -> None:
    user = int(re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1])
    for _, spec in pods(built(overlay)):
        for each in spec["containers"]:
            if each["image"].startswith("manylora"):
                context = {**spec["securityContext"], **each["securityContext"]}
                assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, user, user)
    # the picker's image brings its own


@pytest.mark.parametrize("overlay", SERVERS)
def test_the_server_has_no_rights_in_the_cluster(overlay: str) -> None:
    spec = only(built(overlay), "Deployment", "manylora")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    account = only(built(overlay), "ServiceAccount", spec["serviceAccountName"])
    assert account["automountServiceAccountToken"] is False
    bound = [each for each in built(overlay) if each["kind"].endswith("RoleBinding")]
    assert all(
        subject["name"] != account["metadata"]["name"] for each in bound for subject in each["subjects"]
    )


def test_the_picker_only_reads() -> None:
    verbs = {verb for rule in only(built("llm-d"), "Role")["rules"] for verb in rule["verbs"]}
    assert verbs == {"get", "list", "watch"}
    assert not [each for each in built("llm-d") if each["kind"].startswith("ClusterRole")]


def test_no_secret_stands_in_a_file() -> None:
    assert not [each for each in everything() if each["kind"] == "Secret"]
    for each in everything():
        for _, spec in pods([each]):
            for entry in (entry for part in spec["containers"] for entry in part.get("env", [])):
                if re.search(r"KEY|TOKEN|PASSWORD|SECRET|_URL$", entry["name"]):
                    assert set(entry["valueFrom"]) == {"secretKeyRef"}, entry["name"]
        if each["kind"] == "ConfigMap":
            assert not [
                name for name in each["data"] if re.search(r"KEY|TOKEN|PASSWORD|SECRET|REGISTRY_URL", name)
            ]
            assert "://" not in "".join(each["data"].values())


@pytest.mark.parametrize("overlay", SERVERS)
def test_no_server_starts_without_a_registry_and_keys(overlay: str) -> None:
    needed = {
        entry["name"]
        for entry in container(overlay)["env"]
        if "secretKeyRef" in entry.get("valueFrom", {})
        and not entry["valueFrom"]["secretKeyRef"].get("optional")
    }
    keys = set() if overlay == "aibrix" else {"MANYLORA_API_KEY", "MANYLORA_ADMIN_API_KEY"}
    assert needed == {"MANYLORA_REGISTRY_URL"} | keys


def test_servers_without_keys_are_reached_by_the_controller_and_the_gateway_alone() -> None:
    policy = only(built("aibrix"), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    reached = [rule for rule in policy["ingress"] if "http" in {port["port"] for port in rule["ports"]}]
    (rule,) = reached
    own, others = rule["from"]
    assert own == {"podSelector": {}}
    (expression,) = others["namespaceSelector"]["matchExpressions"]
    assert expression["values"] == ["aibrix-system", "envoy-gateway-system"]


@pytest.mark.parametrize("overlay", SERVERS)
def test_open_metrics_are_not_for_the_whole_cluster(overlay: str) -> None:
    for rule in only(built(overlay), "NetworkPolicy")["spec"]["ingress"]:
        if "metrics" in {port["port"] for port in rule["ports"]}:
            assert rule["from"]
