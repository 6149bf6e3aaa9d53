"""Objects for a cluster as YAML has them, rendered by the programs that users render them with."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Hashable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.kube_tools import run
from tests.support.paths import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
CHART = ROOT / "deploy" / "helm" / "manylora"
EXTENDED = "base+monitoring+training"  # with the components
SERVERS = (
    "base",
    EXTENDED,
    "gpu",
    "llm-d",
    "aibrix",
    "production-stack",
)  # that have the servers' Deployment
OVERLAYS = (*SERVERS, "kserve")

Manifest = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML's own loader takes the second silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[Manifest]:
    """The objects of a stream of YAML documents, those that are empty left out."""
    return [each for each in yaml.load_all(text, _Loader) if each is not None]


@cache
def built(overlay: str) -> tuple[Manifest, ...]:
    """What ``kubectl apply -k`` would send of a folder of ``deploy/kubernetes``, with components after it."""
    first, *components = (str(KUBERNETES / name) for name in overlay.split("+"))
    if not components:
        return _built(first)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder).resolve()
        kustomization = {
            "resources": [os.path.relpath(first, here)],
            "components": [os.path.relpath(each, here) for each in components],
        }
        (here / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return _built(str(here))


def _built(folder: str) -> tuple[Manifest, ...]:
    done = run("kubectl", "kustomize", folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a warning: something is out of date"
    return tuple(documents(done.stdout))


def chart(values: dict[str, Any] | None = None, release: str = "manylora") -> list[Manifest]:
    """The objects of the chart with these values beside its own.

    Raises:
        ChartRefused: with what helm says.
    """
    done = run("helm", "template", release, str(CHART), "--namespace", "models", *_given(values or {}))
    if done.returncode != 0:
        raise ChartRefused(done.stderr)
    return documents(done.stdout)


class ChartRefused(Exception):
    """The values are refused, or what is rendered of them is no YAML."""


def _given(values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield "--set-json"
        yield f"{name}={json.dumps(value)}"


def only(objects: list[Manifest] | tuple[Manifest, ...], kind: str, name: str | None = None) -> Manifest:
    """The one object of that kind, and of that name."""
    found = [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    assert len(found) == 1, [each["metadata"]["name"] for each in found]
    return found[0]


def pods(objects: list[Manifest] | tuple[Manifest, ...]) -> list[tuple[Manifest, Manifest]]:
    """Labels and spec of the pods that objects make."""
    found = []
    for each in objects:
        if each["kind"] == "Deployment":
            template = each["spec"]["template"]
            found.append((template["metadata"]["labels"], template["spec"]))
        elif each["kind"] == "LLMInferenceServiceConfig":
            found.append(({}, each["spec"]["template"]))
    return found


def container(overlay: str) -> Any:
    """The server's own container."""
    return only(built(overlay), "Deployment", "manylora")["spec"]["template"]["spec"]["containers"][0]


def variables(objects: list[Manifest] | tuple[Manifest, ...]) -> dict[str, Any]:
    """Every MANYLORA_ variable that objects set, with its value; None where it comes from elsewhere."""
    found: dict[str, Any] = {}
    for each in objects:
        if each["kind"] == "ConfigMap":
            found |= each["data"]
    for _, spec in pods(objects):
        for container in spec["containers"]:
            found |= {entry["name"]: entry.get("value") for entry in container.get("env", [])}
    return {name: value for name, value in found.items() if name.startswith("MANYLORA_")}
