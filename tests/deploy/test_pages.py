"""What the page about Kubernetes names is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from manylora.server.options.settings import Settings
from tests.support.chart_section import SCHEMA
from tests.support.crd_check import complaints
from tests.support.kube_objects import EXTENDED, KUBERNETES, OVERLAYS, built, chart, pods
from tests.support.kube_schemas import CRDS, VERSIONS
from tests.support.paths import DOCS, ROOT

PAGE = (DOCS / "kubernetes.md").read_text()
NO_OPTIONS = {"MANYLORA_PORT"}  # named as what a service link would set


def test_every_option_is_one_the_server_has() -> None:
    named = set(re.findall(r"MANYLORA_\w+", PAGE)) - NO_OPTIONS
    assert named
    assert named <= {f"MANYLORA_{field.upper()}" for field in Settings.model_fields}


def test_every_folder_is_there() -> None:
    named = set(re.findall(r"(?:deploy/)?((?:kubernetes|helm)/[\w-]+)`", PAGE))
    assert len(named) > len(OVERLAYS)
    assert [name for name in named if not (ROOT / "deploy" / name).is_dir()] == []
    there = {f"kubernetes/{folder.name}" for folder in KUBERNETES.iterdir()}
    assert there <= named


def test_the_kustomization_it_shows_is_made_of_what_there_is() -> None:
    (shown,) = re.findall(r"```yaml\n(apiVersion: kustomize.*?)```", PAGE, re.DOTALL)
    read = yaml.safe_load(shown)
    for path in (*read["resources"], *read["components"]):
        assert (ROOT / path.removeprefix("manylora/") / "kustomization.yaml").exists(), path


def test_every_value_it_sets_is_one_of_the_chart() -> None:
    properties = json.loads(SCHEMA.read_text())["properties"]
    for name in re.findall(r"--set ([\w.]+)=", PAGE):
        head, _, rest = name.partition(".")
        schema: Any = properties[head]
        if head == "settings":
            assert rest in schema["propertyNames"]["enum"]
            continue
        for word in filter(None, rest.split(".")):
            schema = schema["properties"][word]


def test_the_laptops_chart_needs_no_registry() -> None:
    values = {"replicaCount": 1, "secret.keys.registryUrl": "", "persistence.accessMode": "ReadWriteOnce"}
    ((_, spec),) = pods(chart(values))
    names = {entry["name"] for entry in spec["containers"][0]["env"]}
    assert "MANYLORA_REGISTRY_URL" not in names


def test_every_key_of_the_secret_is_described() -> None:
    used = {
        entry["valueFrom"]["secretKeyRef"]["key"]
        for _, spec in pods(built(EXTENDED))
        for container in spec["containers"]
        for entry in container["env"]
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    table = set(re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| `[a-z].*?\|", PAGE, re.MULTILINE))))
    assert used | {"metrics-key"} <= table
    needed = set(re.findall(r"--from-literal=([a-z-]+)=", PAGE))
    assert needed == {"registry-url", "api-key", "admin-api-key", "metrics-key"}


def test_versions_are_those_that_are_checked() -> None:
    assert all(version.removesuffix(".0") in PAGE for version in VERSIONS)
    for file in CRDS.glob("*.yaml"):
        if file.name != "endpoint-picker-config.yaml":
            read = yaml.safe_load(file.read_text())
            assert f"`{read['apiVersion'].partition('/')[2]}`" in PAGE, file.name


@pytest.mark.parametrize("listed", [False, True])
def test_whole_crds_are_compared(tmp_path: Path, listed: bool) -> None:
    """With one that asks for a field that is not set, and for a list of a field that is a text."""
    spec = {
        "type": "object",
        "required": ["artifactURL", "podSelector", "owner"],
        "properties": {
            "artifactURL": {"type": "array"},
            "baseModel": {"type": "string"},
            "podSelector": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "schedulerName": {"type": "string"},
            "owner": {"type": "string"},
        },
    }
    whole = {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {},
            "spec": spec,
        },
    }
    crd = {
        "kind": "CustomResourceDefinition",
        "spec": {
            "group": "model.aibrix.ai",
            "names": {"kind": "ModelAdapter"},
            "versions": [{"name": "v1alpha1", "schema": {"openAPIV3Schema": whole}}],
        },
    }
    file = tmp_path / "crd.yaml"
    file.write_text(yaml.safe_dump({"kind": "List", "items": [crd]} if listed else crd))
    found = [line for line in complaints([file]) if line.startswith("ModelAdapter")]
    assert sorted(found) == [
        "ModelAdapter: $.spec.artifactURL: 'huggingface://example/support-lora' is not of type 'array'",
        "ModelAdapter: $.spec: 'owner' is a required property",
        "ModelAdapter: spec.artifactURL: string, not array",
        "ModelAdapter: spec.owner: is required",
    ]
