"""The manifests of ``deploy/kubernetes`` are valid for the oldest and the newest Kubernetes."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml

from tests.support.kube_objects import OVERLAYS, built, documents
from tests.support.kube_schemas import CRDS, VERSIONS, closed, differences, problems


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str, version: str) -> None:
    assert [problem for each in built(overlay) for problem in problems(each, version)] == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "spec.template.spec.containers.0.livenessProbe.httpGet.ports", "http"),
        ("Deployment", "spec.replicas", "two"),
        ("Service", "spec.ports.0.port", "http"),
        ("NetworkPolicy", "spec.ingresses", []),
        ("InferencePool", "spec.targetPorts.0.number", 80000),
        ("InferencePool", "spec.endpointPickerRef.service", "manylora-epp"),
        ("HTTPRoute", "spec.rules.0.timeouts.request", "for ever"),
    ],
)
def test_what_is_wrong_is_found(kind: str, path: str, value: Any) -> None:
    broken = copy.deepcopy(next(each for each in built("llm-d") if each["kind"] == kind))
    *way, last = (int(word) if word.isdigit() else word for word in path.split("."))
    place: Any = broken
    for word in way:
        place = place[word]
    place[last] = value
    assert len(problems(broken, VERSIONS[-1])) == 1


@pytest.mark.parametrize(
    ("ours", "difference"),
    [
        ({"properties": {"a": {"type": "string"}}}, ["spec.b: is required"]),
        ({"required": ["b"], "properties": {"b": {"type": "integer"}}}, ["spec.b: integer, not string"]),
        ({"required": ["b"], "properties": {"c": {"type": "string"}}}, ["spec.c: there is no such field"]),
        (
            {"required": ["b"], "properties": {"a": {"type": "string", "enum": ["z"]}}},
            ["spec.a: ['z'], not ['x', 'y']"],
        ),
        ({"required": ["b"], "properties": {"a": {"type": "string", "enum": ["x"]}}}, []),
        (
            {"required": ["b"], "properties": {"d": {"type": "array", "items": {"type": "number"}}}},
            ["spec.d[]: number, not string"],
        ),
    ],
)
def test_a_description_that_differs_from_the_crd_is_found(
    ours: dict[str, Any], difference: list[str]
) -> None:
    theirs = {
        "type": "object",
        "required": ["b"],
        "properties": {
            "a": {"type": "string", "enum": ["x", "y"]},
            "b": {"type": "string"},
            "d": {"type": "array", "items": {"type": "string"}},
        },
    }
    assert list(differences({"type": "object", **ours}, theirs)) == difference


def test_fields_that_a_schema_does_not_name_are_refused() -> None:
    schema = closed(
        {"type": "object", "properties": {"labels": {"type": "object", "additionalProperties": {}}}}
    )
    assert schema["additionalProperties"] is False
    assert schema["properties"]["labels"]["additionalProperties"] == {}
    kept = {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True}
    assert closed(kept) == kept


def test_descriptions_say_where_the_whole_is() -> None:
    for file in CRDS.glob("*.yaml"):
        comment = " ".join(re.findall(r"^# (.*)", file.read_text(), re.MULTILINE))
        assert re.search(r"\S+/\S+ \(Apache-2\.0\), \S*\d+\.\d+\.\d+, \S+\.(yaml|go)", comment), file.name


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="twice"):
        documents("a: 1\nb: 2\na: 3\n")
